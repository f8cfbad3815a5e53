"""Configs of older versions: every kind of change, and what a reader says of a version that it does not know."""

import dataclasses

import pytest

from alm_jax.errors import UserError
from alm_jax.run import migrate
from alm_jax.run.config_json import from_json, to_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    size: int
    mode: str = "new"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    parts: tuple[Inner, ...] = ()
    total: int = 1
    inner: Inner | None = None


def change(monkeypatch, *migrations):
    monkeypatch.setattr(migrate, "MIGRATIONS", migrations)


OLD = {
    "type": "Old",
    "name": "x",
    "parts": [{"type": "Part", "length": 3, "unused": 1}, {"type": "Part", "length": 4, "unused": 2}],
    "inner": {"type": "Part", "length": 5, "unused": 3},
}


def test_types_and_fields_get_their_new_names_wherever_they_are(monkeypatch):
    change(
        monkeypatch,
        migrate.chain(migrate.rename_type("Part", "Inner"), migrate.rename_type("Old", "Outer")),
        migrate.rename_field("Inner", "length", "size"),
        migrate.drop_field("Inner", "unused"),
        migrate.set_default("Inner", "mode", "early"),
        migrate.rename_value("Inner", "mode", "early", "old"),
        migrate.derive_field("Outer", "total", lambda outer: sum(part["size"] for part in outer["parts"])),
    )
    old = {"size": 5, "mode": "old"}
    expected = Outer(
        name="x",
        parts=(Inner(size=3, mode="old"), Inner(size=4, mode="old")),
        total=7,
        inner=Inner(**old),
    )
    assert from_json(OLD, Outer) == expected
    assert from_json(OLD["inner"], Inner) == Inner(**old)
    assert from_json({"format": 1} | OLD, Outer) == expected


def test_a_reader_applies_only_what_a_file_lacks(monkeypatch):
    """A name that came back with another meaning is left alone in files that were written after."""
    change(
        monkeypatch, migrate.rename_field("Inner", "size", "width"), migrate.set_default("Inner", "size", 9)
    )
    assert migrate.migrate({"type": "Inner", "size": 1}) == {"type": "Inner", "width": 1, "size": 9}
    assert migrate.migrate({"format": 2, "type": "Inner", "width": 1, "size": 2}) == {
        "type": "Inner",
        "width": 1,
        "size": 2,
    }
    assert migrate.migrate({"format": 3, "type": "Inner", "size": 2}) == {"type": "Inner", "size": 2}


def test_what_is_written_is_of_this_version_and_comes_back(monkeypatch):
    config = Outer(name="x", parts=(Inner(size=1),), inner=Inner(size=2))
    assert to_json(config)["format"] == migrate.current_format()
    assert "format" not in to_json(config)["inner"]
    change(monkeypatch, migrate.rename_field("Inner", "length", "size"))
    assert to_json(config)["format"] == 2
    assert from_json(to_json(config), Outer) == config


def test_an_argument_is_not_changed(monkeypatch):
    change(monkeypatch, migrate.rename_field("Inner", "length", "size"), migrate.drop_field("Part", "unused"))
    before = repr(OLD)
    migrate.migrate(OLD)
    assert repr(OLD) == before


@pytest.mark.parametrize(
    ("found", "says"), [(2, "reads up to 1"), ("1", "expected an integer"), (0, "expected an integer")]
)
def test_other_versions_are_refused(monkeypatch, found, says):
    change(monkeypatch)
    with pytest.raises(UserError, match=says):
        from_json({"format": found, "type": "Inner", "size": 1}, Inner)


def test_a_field_that_is_missing_is_named():
    with pytest.raises(UserError, match=r"config\.inner lacks the fields \['size'\] of Inner"):
        from_json({"type": "Outer", "name": "x", "inner": {"type": "Inner"}}, Outer)
