"""The text of an optimised HLO module, as computations and their instructions in the order they run."""

import dataclasses
import functools
import re
from collections.abc import Iterator

COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .*\{$")
# No type holds a word directly before a parenthesis and after a space, so the first such word is the opcode.
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>.*?) (?P<opcode>[a-z][\w\-]*)\(")
# A Pallas kernel's call prints its metadata over several lines, and one of those starts with "}" too.
END = re.compile(r"^\}(, execution_thread=\"[^\"]*\")?$")
ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')
CONSTANT = re.compile(r"s32\[\]\S* constant\((\d+)\)")
TRIP_COUNT = re.compile(r'known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction."""

    name: str
    """Name, unique in its module."""
    opcode: str
    """Operation: ``fusion``, ``while``, ``collective-permute-start``, ..."""
    type: str
    """Its shape, or tuple of shapes, with layout."""
    text: str
    """Its text: one line, or several for a Pallas kernel's call."""

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the values that it reads."""
        start = self.text.index(f" {self.opcode}(") + len(self.opcode) + 2
        depth, end = 1, start
        while depth and end < len(self.text):
            depth += {"(": 1, ")": -1}.get(self.text[end], 0)
            end += 1
        return tuple(re.findall(r"%([\w.\-]+)", self.text[start : end - 1]))

    @property
    def op_name(self) -> str:
        """Its place in the traced function, ``jit(step)/.../dot_general``; may be empty."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found.group(1) if found else ""

    @property
    def estimated_cycles(self) -> int | None:
        """XLA:TPU's own estimate for one run; None where it writes none."""
        found = ESTIMATE.search(self.text)
        return int(found.group(1)) if found else None

    def takes(self, name: str) -> bool:
        """Whether the value of that name is its only operand."""
        return re.search(rf" {self.opcode}\([^()]*%?\b{re.escape(name)}\)", self.text) is not None

    def called(self, key: str) -> str | None:
        """Returns the computation named by an attribute such as ``body``."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.text)
        return found.group(1) if found else None

    def branches(self) -> list[str]:
        """Returns the computations between which a ``conditional`` chooses."""
        found = re.search(r"branch_computations=\{([^}]*)\}", self.text)
        if found:
            return re.findall(r"[\w.\-]+", found.group(1).replace("%", ""))
        pair = (self.called("true_computation"), self.called("false_computation"))
        return [name for name in pair if name]


@dataclasses.dataclass(frozen=True)
class Module:
    """One module."""

    computations: dict[str, list[Instruction]]
    """Maps names to instructions; in a scheduled module, in the order they run."""
    entry: str
    """The computation that runs first."""
    is_scheduled: bool
    """Whether the order is the compiler's schedule."""
    num_partitions: int
    """Number of devices that the program is cut over."""

    @functools.cached_property
    def types(self) -> dict[str, str]:
        """Maps the name of every value to its shape, or tuple of shapes, with layout."""
        return {line.name: line.type for lines in self.computations.values() for line in lines}

    def trip_count(self, loop: Instruction) -> int | None:
        """Returns the trips of a ``while``: the compiler's number, else the bound its condition compares with."""
        stated = TRIP_COUNT.search(loop.text)
        if stated:
            return int(stated.group(1))
        condition = self.computations.get(loop.called("condition") or "", [])
        bounds = [int(bound) for line in condition for bound in CONSTANT.findall(line.text)]
        return max(bounds, default=None)

    def walk(self, computation: str | None = None, times: int = 1) -> Iterator[tuple[Instruction, int]]:
        """Yields every instruction that runs, with how often it runs: loops multiplied, the most expensive branch of
        a choice.

        A loop with unknown trips counts once (`trip_count`). Instructions inside a fusion are not listed.
        """
        for line in self.computations.get(self.entry if computation is None else computation, []):
            yield line, times
            if line.opcode == "while":
                yield from self.walk(line.called("body") or "", times * (self.trip_count(line) or 1))
            elif line.opcode == "conditional" and line.branches():
                yield from self.walk(max(line.branches(), key=self._weight), times)
            elif line.opcode == "call":
                yield from self.walk(line.called("to_apply") or "", times)

    def _weight(self, name: str) -> tuple[int, int]:
        """Chooses among the branches of a choice by estimated cycles; without these, by length."""
        lines = [line for line, _ in self.walk(name)]
        return sum(line.estimated_cycles or 0 for line in lines), len(lines)


@functools.lru_cache(maxsize=4)
def parse(text: str) -> Module:
    """Parses the module that ``compiled.as_text()`` prints. Raises ValueError where it has no entry or is cut off."""
    computations: dict[str, list[Instruction]] = {}
    entry: str | None = None
    current: list[list[str]] | None = None
    name = ""
    for line in text.splitlines():
        if current is None:
            head = COMPUTATION.match(line)
            if head:
                name, current = head["name"], []
                entry = name if head["entry"] else entry
        elif END.match(line):
            computations[name] = [_instruction("\n".join(lines)) for lines in current]
            current = None
        elif INSTRUCTION.match(line):
            current.append([line])
        elif current:
            current[-1].append(line)
    if entry is None:
        raise ValueError("this text is no HLO module: it has no ENTRY computation")
    if current is not None:
        raise ValueError(f"this HLO module ends inside of its computation {name}")
    header = text.split("\n", 1)[0]
    partitions = re.search(r"num_partitions=(\d+)", header)
    return Module(
        computations, entry, "is_scheduled=true" in header, int(partitions.group(1)) if partitions else 1
    )


def _instruction(text: str) -> Instruction:
    found = INSTRUCTION.match(text)
    assert found is not None
    return Instruction(found["name"], found["opcode"], found["type"], text)
