"""Reading the fields of JSON files from other projects, each with its required type and range.

A config.json may hold anything. The code that reads a field states what it must be: a size, a number, a flag, a text.
Anything else is an error that names the file, the field, what was found and what was expected.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alm_jax.errors import UserError

LARGEST = 2**31 - 1
"""Largest size, count or id that a field may have."""
_MOST_BYTES = 1 << 28
_ABSENT = object()


class Fields(Mapping[str, Any]):
    """An object of a JSON file. An absent field takes the reader's default; null is a value."""

    def __init__(self, place: str, content: Mapping[str, Any], prefix: str = ""):
        self.place = place
        """The file, for messages."""
        self.prefix = prefix
        """Prefix of the field names in messages: "text_config." in an object under that name."""
        self._content = content

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Fields":
        """Wraps ``fields``, or those of a config.json whose path is not known."""
        return fields if isinstance(fields, Fields) else cls("config.json", fields)

    def __getitem__(self, name: str) -> Any:
        return self._content[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    def __or__(self, other: Mapping[str, Any]) -> "Fields":
        """Returns the same object with other values for some fields."""
        return Fields(self.place, {**self._content, **other}, self.prefix)

    def size(self, name: str, default: int, *, least: int = 1) -> int:
        """Reads a whole number from ``least`` to `LARGEST`."""
        value = self.get(name, default)
        if not _is_whole(value) or not least <= value <= LARGEST:
            raise self.error(name, f"a whole number from {least} to {LARGEST}")
        return int(value)

    def size_or_none(self, name: str, *, least: int = 1) -> int | None:
        """Reads a size; None where the field is null or absent."""
        return None if self.get(name) is None else self.size(name, least, least=least)

    def divisor(self, name: str, default: int, *, of: int) -> int:
        """Reads a size that divides ``of``: the heads of a width."""
        value = self.size(name, default)
        if of % value:
            raise self.error(name, f"a divisor of {of}, which the heads or groups share", value)
        return value

    def sizes(self, name: str, default: Sequence[int], *, length: int | None = None) -> tuple[int, ...]:
        """Reads a list of sizes, of ``length`` where that is given."""
        value = self.get(name, default)
        expected = (
            "a list of " + ("" if length is None else f"{length} ") + f"whole numbers from 1 to {LARGEST}"
        )
        if not isinstance(value, list | tuple) or not value or length not in (None, len(value)):
            raise self.error(name, expected)
        if not all(_is_whole(part) and 1 <= part <= LARGEST for part in value):
            raise self.error(name, expected)
        return tuple(map(int, value))

    def number(self, name: str, default: float, *, above: float | None = None) -> float:
        """Reads a finite number, larger than ``above`` where that is given."""
        value = self.get(name, default)
        if not _is_finite(value) or (above is not None and not value > above):
            raise self.error(name, "a number" if above is None else f"a number above {above:g}")
        return float(value)

    def numbers(self, name: str, default: Sequence[float]) -> tuple[float, ...]:
        """Reads a list of positive finite numbers."""
        value = self.get(name, default)
        if (
            not isinstance(value, list | tuple)
            or not value
            or not all(_is_finite(v) and v > 0 for v in value)
        ):
            raise self.error(name, "a list of positive numbers")
        return tuple(map(float, value))

    def rate(self, name: str, default: float) -> float:
        """Reads a number in [0, 1): a dropout rate."""
        value = self.number(name, default)
        if not 0 <= value < 1:
            raise self.error(name, "a rate from 0 to below 1")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Reads true or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "true or false")
        return value

    def word(self, name: str, default: str, among: Sequence[str] = ()) -> str:
        """Reads a text, one of ``among`` where these are given."""
        value = self.get(name, default)
        if not isinstance(value, str) or (among and value not in among):
            raise self.error(name, " or ".join(map(repr, sorted(among))) or "a text")
        return value

    def words(self, name: str) -> tuple[str, ...]:
        """Reads a list of texts; empty where the field is absent or null."""
        value = self.get(name) or ()
        if not isinstance(value, list | tuple) or not all(isinstance(part, str) for part in value):
            raise self.error(name, "a list of texts")
        return tuple(value)

    def token_id(self, name: str, default: int) -> int:
        """Reads a whole number from 0: an id of the vocabulary."""
        return self.size(name, default, least=0)

    def section(self, name: str) -> "Fields":
        """Reads the object under a name; empty where the field is absent or null."""
        value = self.get(name)
        if isinstance(value, Fields):
            return value
        if value is not None and not isinstance(value, Mapping):
            raise self.error(name, "an object")
        return Fields(self.place, value or {}, f"{self.prefix}{name}.")

    def only(self, expected: Mapping[str, Any], whose: str) -> None:
        """Raises UserError where a field is present with another value than the one that ``whose`` model computes."""
        for name, value in expected.items():
            found = self.get(name, value)
            is_kind = type(found) is type(value) or (_is_finite(found) and _is_finite(value))
            if not is_kind or found != value:
                raise UserError(
                    f"{self.place}: {self.prefix}{name} is {show(found)}; {whose} computes {value!r} alone"
                )

    def error(self, name: str, expected: str, found: Any = _ABSENT) -> UserError:
        """The message for a field that is not what was expected."""
        if found is _ABSENT:
            found = self.get(name, _ABSENT)
        shown = "missing" if found is _ABSENT else show(found)
        return UserError(f"{self.place}: {self.prefix}{name} is {shown}, expected {expected}")


def read_object(path: Path, what: str = "the folder of a model") -> Fields:
    """Reads the object of a JSON file.

    Raises:
        UserError: there is no such file, or it is not JSON, or no object.
    """
    content = read_json(path, what)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {show(content)}, expected a JSON object")
    return Fields(str(path), content)


def read_json(path: Path, what: str = "the folder of a model") -> Any:
    """Reads a JSON file. Raises UserError where the file does not exist, is not JSON, or is too large."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path}: larger than {_MOST_BYTES} bytes; expected the JSON file of a model")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; expected {what}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise UserError(f"{path}: its JSON is nested too deeply to be read") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error!s:.200})") from error


def show(value: Any) -> str:
    """Describes a value of JSON in a few words."""
    match value:
        case Mapping():
            return f"an object of {len(value)} fields"
        case list() | tuple():
            plain = len(value) <= 8 and all(isinstance(part, bool | int | float | str) for part in value)
            return _cut(str(list(value))) if plain else f"a list of {len(value)}"
        case None:
            return "null"
        case int() if abs(value) > 10**40:
            return f"a number of {value.bit_length()} bits"
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= 1e300 and math.isfinite(value)
