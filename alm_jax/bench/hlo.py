"""The text of an optimised HLO module, as computations and their instructions in the order they run."""

import dataclasses
import functools
import re

COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .*\{$")
# No type holds a word directly before a parenthesis and after a space, so the first such word is the opcode.
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>.*?) (?P<opcode>[a-z][\w\-]*)\(")
CONSTANT = re.compile(r"s32\[\]\S* constant\((\d+)\)")
TRIP_COUNT = re.compile(r'known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction."""

    name: str
    """Unique in its module."""
    opcode: str
    """``fusion``, ``while``, ``collective-permute-start``, ..."""
    type: str
    """Its shape, or tuple of shapes, with layout."""
    text: str
    """The whole line."""

    def takes(self, name: str) -> bool:
        """Whether the value of that name is its only operand."""
        return re.search(rf" {self.opcode}\([^()]*%?\b{re.escape(name)}\)", self.text) is not None

    def called(self, key: str) -> str | None:
        """The computation that an attribute such as ``body`` names."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.text)
        return found.group(1) if found else None

    def branches(self) -> list[str]:
        """The computations between which a ``conditional`` chooses."""
        found = re.search(r"branch_computations=\{([^}]*)\}", self.text)
        if found:
            return re.findall(r"[\w.\-]+", found.group(1).replace("%", ""))
        pair = (self.called("true_computation"), self.called("false_computation"))
        return [name for name in pair if name]


@dataclasses.dataclass(frozen=True)
class Module:
    """One module."""

    computations: dict[str, list[Instruction]]
    """Name -> instructions; in a scheduled module, in the order they run."""
    entry: str
    """The computation that runs first."""
    is_scheduled: bool
    """Whether the order is the compiler's schedule."""

    def trip_count(self, loop: Instruction) -> int | None:
        """Trips of a ``while``: what the compiler states, else the bound its condition compares with."""
        stated = TRIP_COUNT.search(loop.text)
        if stated:
            return int(stated.group(1))
        condition = self.computations.get(loop.called("condition") or "", [])
        bounds = [int(bound) for line in condition for bound in CONSTANT.findall(line.text)]
        return max(bounds, default=None)


@functools.lru_cache(maxsize=4)
def parse(text: str) -> Module:
    """The module that ``compiled.as_text()`` prints. Raises ValueError where it has no entry."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = None, None
    for line in text.splitlines():
        if current is None:
            head = COMPUTATION.match(line)
            if head:
                current = computations.setdefault(head["name"], [])
                entry = head["name"] if head["entry"] else entry
        elif line.startswith("}"):
            current = None
        else:
            found = INSTRUCTION.match(line)
            if found:
                current.append(Instruction(found["name"], found["opcode"], found["type"], line))
    if entry is None:
        raise ValueError("this text is no HLO module: it has no ENTRY computation")
    return Module(computations, entry, "is_scheduled=true" in text.split("\n", 1)[0])
