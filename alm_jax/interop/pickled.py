"""Reads a pickle as plain values without calling anything that it names.

Python's own unpickler imports and calls whatever a pickle names, and allocates a table as long as any number in it.
This reader interprets only opcodes: numbers, texts and containers are read, a name becomes a `Name`, and for each
call in the pickle the caller's own function decides which value stands for its result.
"""

import dataclasses
import io
import mmap
import pickletools
from typing import Any, Protocol, runtime_checkable

from alm_jax.errors import UserError

MAX_VALUES = 5_000_000
"""Maximum number of opcodes of one pickle: far more than any model's weights need, and few enough to fit into
memory."""
_MAX_KEY = 2**31
_NUMBERS_AND_TEXTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


@dataclasses.dataclass(frozen=True)
class Name:
    """A function or class that a pickle names. It is not imported."""

    module: str
    name: str


class Opaque:
    """Placeholder for an object that is no tensor and no plain value; holds nothing."""


@runtime_checkable
class Reader(Protocol):
    """Decides which value stands for anything that is no plain value. Each method may raise UserError."""

    def check(self, name: Name) -> None:
        """Raises UserError for a forbidden name."""

    def call(self, called: Name, arguments: tuple[Any, ...], /) -> Any:
        """Returns the value that stands for an object made by a call."""

    def load(self, where: Any, /) -> Any:
        """Returns the value that stands for an object stored elsewhere."""


def read_pickle(stream: io.BytesIO | mmap.mmap, reader: Reader) -> Any:
    """Reads the value of the next pickle of a stream.

    Keys of dicts other than texts and small integers are left out, and so is the state of objects.

    Raises:
        UserError: it has an opcode that no state dict needs, an impossible number in its memo, or more than
            `MAX_VALUES` opcodes.
        Exception: any other, where it is damaged.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def pop_to_mark() -> list[Any]:
        at = len(stack) - 1
        while stack[at] is not _MARK:  # IndexError where there is none
            at -= 1
            if at < 0:
                raise ValueError("no mark")
        items = stack[at + 1 :]
        del stack[at:]
        return items

    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]
        if count >= MAX_VALUES:
            raise UserError(f"its pickle has more than {MAX_VALUES:,} values; save its state dict alone")
        match opcode.name:
            case name if name in _NUMBERS_AND_TEXTS:
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "MARK":
                stack.append(_MARK)
            case "EMPTY_TUPLE":
                stack.append(())
            case name if name in _TUPLES:
                items = stack[-_TUPLES[name] :]
                del stack[-_TUPLES[name] :]
                stack.append(tuple(items))
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "LIST" | "FROZENSET":
                stack.append(pop_to_mark())
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                items = pop_to_mark()
                stack.append(_set_items({}, items))
            case "APPEND":
                item = stack.pop()
                _append(stack[-1], [item])
            case "APPENDS" | "ADDITEMS":
                items = pop_to_mark()
                _append(stack[-1], items)
            case "SETITEM":
                item, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [key, item])
            case "SETITEMS":
                items = pop_to_mark()
                _set_items(stack[-1], items)
            case "POP":
                stack.pop()
            case "POP_MARK":
                pop_to_mark()
            case "DUP":
                stack.append(stack[-1])
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                # Picklers count what they remember, so no number is larger than that of the opcodes before it.
                if not 0 <= argument <= count:
                    raise UserError(f"its pickle remembers a value under {argument}, after {count} opcodes")
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GLOBAL":
                stack.append(Name(*argument.split(" ", 1)))
                reader.check(stack[-1])
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(Name(_text(module), _text(name)))
                reader.check(stack[-1])
            case "REDUCE" | "NEWOBJ":
                arguments, called = stack.pop(), stack.pop()
                stack.append(reader.call(_named(called), tuple(arguments)))
            case "NEWOBJ_EX":
                _, arguments, called = stack.pop(), stack.pop(), stack.pop()
                stack.append(reader.call(_named(called), tuple(arguments)))
            case "BUILD":
                stack.pop()
            case "BINPERSID":
                stack.append(reader.load(stack.pop()))
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case name:
                raise UserError(f"its pickle has the opcode {name}, which no state dict needs")
    raise ValueError("the pickle has no end")


def _append(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Opaque):
        raise TypeError(f"items are added to a {type(target).__name__}")


def _set_items(target: Any, items: list[Any]) -> Any:
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str) or (isinstance(key, int) and abs(key) < _MAX_KEY):
                target[key] = value
    elif not isinstance(target, Opaque):
        raise TypeError(f"items are set in a {type(target).__name__}")
    return target


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a name is a {type(value).__name__}")
    return value


def _named(value: Any) -> Name:
    if not isinstance(value, Name):
        raise TypeError(f"a {type(value).__name__} is called")
    return value
