"""Frozen dataclasses as JSON values and back; each object carries its type's name."""

import dataclasses
import importlib
import types
from typing import Any, get_args

from alm_jax.errors import UserError
from alm_jax.ranges import check_value, hints_of
from alm_jax.run.migrate import FORMAT_KEY, TYPE_KEY, current_format, migrate


def to_json(value: Any) -> Any:
    """A config as JSON values: each object has its type's name, the outermost the version of the format too."""
    encoded = _encode(value)
    return {FORMAT_KEY: current_format()} | encoded if isinstance(encoded, dict) else encoded


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {TYPE_KEY: type_name(type(value))} | fields
    if isinstance(value, tuple | list):
        return [_encode(item) for item in value]
    return value


def from_json(value: Any, expected: Any, path: str = "config") -> Any:
    """The config that ``to_json`` of this or an older version wrote; `alm_jax.run.migrate` has the old names.

    Raises UserError where it names what this version does not know, or is of a newer version. ``path`` is what an
    error calls the value.
    """
    try:
        return _decode(migrate(value, path), expected, path)
    except UserError as error:
        # What fields must have in common is checked by the configs themselves, which know no file.
        if path in str(error) or path == "config":
            raise
        raise UserError(f"{path}: {error}") from error


def _decode(value: Any, expected: Any, path: str) -> Any:
    if isinstance(value, dict):
        if not isinstance(value.get(TYPE_KEY), str | None):
            raise UserError(f"{path}.{TYPE_KEY} is {value[TYPE_KEY]!r:.80}, expected the name of a type")
        _import_module_of(value.get(TYPE_KEY), path)
    alternatives: tuple[Any, ...] = get_args(expected) or (expected,)
    choices = [
        each
        for kind in alternatives
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
        for each in kinds_of(kind)
    ]
    if isinstance(value, dict) and choices:
        kinds = {name: kind for kind in choices for name in (kind.__name__, type_name(kind))}
        kind = kinds.get(value.get(TYPE_KEY, ""))
        if kind is None:
            raise UserError(f"{path} is a {value.get(TYPE_KEY)!r:.80}, this version knows {sorted(kinds)}")
        hints = hints_of(kind)
        fields = {name: item for name, item in value.items() if name != TYPE_KEY}
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(kind)})
        if unknown:
            raise UserError(
                f"{path} has unknown fields {unknown!s:.200}; it may come from another version of alm_jax"
            )
        missing = sorted(
            field.name
            for field in dataclasses.fields(kind)
            if field.name not in fields
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        )
        if missing:
            raise UserError(f"{path} lacks the fields {missing} of {kind.__name__}; the file is damaged")
        found = {name: _decode(item, hints[name], f"{path}.{name}") for name, item in fields.items()}
        for name, item in found.items():
            # What is a config itself has been checked when it was made.
            if not dataclasses.is_dataclass(item):
                check_value(item, hints[name], f"{path}.{name}")
        return kind(**found)
    if isinstance(value, list):
        return tuple(_decode(item, element_type(expected), path) for item in value)
    return value


def type_name(kind: type) -> str:
    """The name of a type in JSON; with its module, ``package.module:Name``, where it is not of this project."""
    own = kind.__module__.partition(".")[0] in ("alm_jax", "data_pipelines")
    return kind.__name__ if own else f"{kind.__module__}:{kind.__name__}"


def _import_module_of(name: Any, path: str) -> None:
    """Imports the module of a type of another project. Raises UserError where it is not there."""
    module, _, kind = str(name).rpartition(":")
    if not module:
        return
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a module of others raises
        raise UserError(
            f"{path} is a {kind} of the module {module}, which cannot be imported ({error}): install its package, or "
            "put its folder into PYTHONPATH"
        ) from error


def kinds_of(kind: Any) -> list[Any]:
    """The dataclasses that a field of this type may hold: itself, or of a base class, such as that of data sets, all
    that its ``kinds`` finds."""
    return kind.kinds() if hasattr(kind, "kinds") else [kind]


def element_type(expected: Any) -> Any:
    """The type of the items of a tuple, looking through ``tuple[...] | None``."""
    if isinstance(expected, types.UnionType):
        expected = next(kind for kind in get_args(expected) if kind is not types.NoneType)
    return (get_args(expected) or (Any,))[0]
