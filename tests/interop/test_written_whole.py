"""Exports over what was there before: one or the other, never both, and nothing of others is removed."""

import pytest

from alm_jax.errors import UserError
from alm_jax.interop.written_whole import written_whole


def fill(folder, **files) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.json").write_text(text)


def contents(folder) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_an_older_export_is_replaced_as_a_whole(tmp_path):
    out = tmp_path / "deep" / "out"
    for stale in ({}, {"config": "1", "processor_config": "old"}):
        if stale:
            fill(out, **stale)
            (out / "model-00001-of-00002.safetensors").write_bytes(b"old")
        with written_whole(out) as new:
            fill(new, config="2")
            (new / "original").mkdir()
            (new / "original" / "weights").touch(mode=0o600)
        assert contents(out / "original") == {"weights": ""}
        assert (out / "original" / "weights").stat().st_mode & 0o777 == 0o644
        (out / "original" / "weights").unlink()
        (out / "original").rmdir()
        assert contents(out) == {"config.json": "2"}
        assert [path.stat().st_mode & 0o777 for path in (out, out / "config.json")] == [0o755, 0o644]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_an_error_leaves_what_was_there(tmp_path):
    fill(tmp_path / "out", config="old")

    def write() -> None:
        with written_whole(tmp_path / "out") as new:
            fill(new, config="half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write()
    assert contents(tmp_path / "out") == {"config.json": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_no_export_is_not_replaced(tmp_path):
    fill(tmp_path / "notes", diary="1")
    fill(tmp_path / "mixed", config="1")
    (tmp_path / "mixed" / "thesis.tex").touch()
    fill(tmp_path / "nested", config="1")
    (tmp_path / "nested" / ".git").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "notes")
    for name, match in (
        ("notes", "neither empty nor an older export"),
        ("mixed", r"it holds thesis\.tex"),
        ("nested", r"it holds \.git"),
        ("file", "no folder of its own"),
        ("link", "no folder of its own"),
    ):
        with pytest.raises(UserError, match=match), written_whole(tmp_path / name):
            pass
    assert contents(tmp_path / "notes") == {"diary.json": "1"}
