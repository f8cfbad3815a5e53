"""Types that a field of a config may hold, and a config as JSON with another type in one of its fields."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from alm_jax.errors import UserError
from alm_jax.ranges import fits, hints_of
from alm_jax.run.config_json import kinds_of, to_json, type_name
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.run.migrate import FORMAT_KEY, TYPE_KEY


def choices_of(hint: Any) -> list[type | None]:
    """The types of config that a field may hold, None among them; empty or one where there is no choice."""
    found: list[type | None] = []
    for one in get_args(hint) or (hint,):
        if one is type(None):
            found.append(None)
        elif isinstance(one, type) and dataclasses.is_dataclass(one):
            found += kinds_of(one)
    return found


def option_name(kind: type | None) -> str:
    """A type's name as an option has it: ``info-nce-config``."""
    return "none" if kind is None else re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", type_name(kind)).lower()


def kind_named(path: str, name: str, choices: Sequence[type | None]) -> type | None:
    """The type among ``choices`` that an option calls ``name``; raises UserError where there is none."""
    wanted = name.lower().replace("_", "-")
    for kind in choices if len(choices) > 1 else ():
        option = option_name(kind)
        if wanted in (
            option,
            option.removesuffix("-config"),
            option.removesuffix("-spec"),
            option.replace("-", ""),
        ):
            return kind
    if len(choices) < 2:
        raise UserError(
            f"--{path}:{name}: {path} has no choice of types; `--help` lists the fields that have"
        )
    raise UserError(f"--{path}:{name}: expected one of {', '.join(map(option_name, choices))}")


def find_field(whole: dict[str, Any], path: str) -> tuple[dict[str, Any], str, Any]:
    """The object that has the field of this path, the field's name, and its type."""
    *parents, name = path.split(".")
    value: Any = whole
    kind: type | None = ExperimentConfig
    for step in (*parents, name):
        hints = {} if kind is None else hints_of(kind)
        if step not in hints:
            raise UserError(f"--{path}: there is no field {step!r} there, but {sorted(hints)}")
        if step is name:
            break
        value = value.get(step)
        found = value.get(TYPE_KEY) if isinstance(value, dict) else None
        kinds = (one for one in choices_of(hints[step]) if one is not None)
        kind = next((one for one in kinds if type_name(one) == found), None)
    return value, name, hints[name]


def adapt(old: Any, kind: type) -> dict[str, Any]:
    """A config of this type as JSON, with what it has in common with ``old``."""
    old = old if isinstance(old, dict) else {}
    made: dict[str, Any] = {TYPE_KEY: type_name(kind)}
    hints = hints_of(kind)
    for field in dataclasses.fields(kind):
        hint, value = hints[field.name], old.get(field.name)
        kinds = [one for one in choices_of(hint) if one is not None]
        if field.name in old and (
            value[TYPE_KEY] in map(type_name, kinds) if isinstance(value, dict) else fits(value, hint)
        ):
            made[field.name] = value
        elif field.default is not dataclasses.MISSING:
            default = to_json(field.default)
            made[field.name] = _without_format(default)
        elif not has_default(field) and len(kinds) == 1:
            made[field.name] = adapt(value, kinds[0])
    return made


def objects(path: str, value: dict[str, Any], kind: type) -> Iterator[tuple[str, dict[str, Any], type]]:
    """The objects of a new value that may lack fields: itself, and what `adapt` has made inside it."""
    yield path, value, kind
    for name, hint in hints_of(kind).items():
        inner = value.get(name)
        if isinstance(inner, dict):
            kinds = {type_name(one): one for one in choices_of(hint) if one is not None}
            yield from objects(f"{path}.{name}", inner, kinds[inner[TYPE_KEY]])


def _without_format(value: Any) -> Any:
    """A part of a config as it stands in the whole one."""
    return (
        {key: item for key, item in value.items() if key != FORMAT_KEY} if isinstance(value, dict) else value
    )


def has_default(field: Any) -> bool:
    """Whether a field of a dataclass may be left out."""
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
