"""The allowed values of config fields: their types, and the ranges of their numbers.

A whole number is at least 1 and any other number at least 0 and finite, since fields are sizes, counts, rates,
lengths and weights. A field with "dropout" in its name lies in [0, 1); ids and seeds begin at 0. A field that may
have other values declares them: ``eval_every: Annotated[int, Range(0)]``.
"""

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from alm_jax.errors import UserError

Number: TypeAlias = int | float


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``."""

    low: Number = -math.inf
    high: Number = math.inf
    is_open: bool = False
    """Whether ``high`` itself is too large."""

    def __contains__(self, value: Number) -> bool:
        if not math.isfinite(value):
            return False
        return self.low <= value and (value < self.high if self.is_open else value <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return "finite" if self.low == -math.inf else f"at least {self.low:g}"
        return f"from {self.low:g} to {'below ' if self.is_open else ''}{self.high:g}"


PROBABILITY = Range(0, 1, is_open=True)


def default_range(name: str, kind: type) -> Range:
    """Returns the range of a number of a field that declares none."""
    if "dropout" in name or "drop_path" in name:
        return PROBABILITY
    if name.endswith(("_id", "_ids", "seed")):
        return Range(0)
    return Range(1) if kind is int else Range(0)


def hints_of(kind: Any) -> Mapping[str, Any]:
    """Returns the types of a dataclass's fields, with their declared ranges."""
    return get_type_hints(kind, include_extras=True)


def check_config(config: Any, path: str = "") -> None:
    """Checks every field of a config and of those inside it. Raises UserError with the first field that is wrong."""
    hints = hints_of(type(config))
    for field in dataclasses.fields(config):
        where = f"{path}.{field.name}" if path else field.name
        check_value(getattr(config, field.name), hints[field.name], where)


def check_value(value: Any, hint: Any, path: str) -> None:
    """Raises UserError where ``value`` is not of the type ``hint``, or out of its range; looks into configs."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        check_config(value, path)
    if not fits(value, hint):
        raise UserError(f"{path} is {value!r:.200}; expected {_words(hint)}")
    name = path.rpartition(".")[2]
    for number, allowed in _numbers(value, hint, name):
        if number not in allowed:
            raise UserError(f"{path} is {value!r:.200}; it must be {allowed}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, ranges aside."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return fits(value, args[0])
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in args)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in args)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(fits(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(fits, value, args))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool):
        return isinstance(value, hint)
    if hint in (None, types.NoneType):
        return value is None
    return not isinstance(hint, type) or isinstance(value, hint)


def _numbers(value: Any, hint: Any, name: str) -> list[tuple[Number, Range]]:
    """Yields the numbers in a value of this type, with their ranges."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        declared = [one for one in args[1:] if isinstance(one, Range)]
        found = _numbers(value, args[0], name)
        return [(number, declared[0]) for number, _ in found] if declared else found
    if origin in (Union, types.UnionType):
        return next((_numbers(value, one, name) for one in args if fits(value, one)), [])
    if origin is tuple:
        items = [args[0]] * len(value) if args[1:] == (Ellipsis,) else args
        return [pair for item, one in zip(value, items, strict=True) for pair in _numbers(item, one, name)]
    return [(value, default_range(name, hint))] if hint in (int, float) else []


def _words(hint: Any) -> str:
    """Describes a type in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _words(args[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_words, args)))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin is tuple:
        return f"a list, each item {_words(args[0])}" if args[1:] == (Ellipsis,) else f"{len(args)} values"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}
    return words.get(hint, "None" if hint in (None, types.NoneType) else getattr(hint, "__name__", str(hint)))
