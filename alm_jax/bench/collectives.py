"""Traffic of a compiled program over the interconnect: by kind, how much, and what runs meanwhile.

A collective is synchronous, or a start and a done between which other instructions run. XLA:TPU prints an
asynchronous all-gather three times, in a fusion that starts it, in the fusion of the product that hides it, and in
one that waits for it: it is one collective, and counts once.
"""

import dataclasses
import re
from collections.abc import Iterable

from alm_jax.bench.hlo import Instruction, Module, parse
from alm_jax.bench.shapes import shapes_of

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
OPCODE = re.compile(rf"({'|'.join(KINDS)})(-start)?$")
DONE = re.compile(rf"({'|'.join(KINDS)}|async)-done$")
CHANNEL = re.compile(r"channel_id=(\d+)")
ASYNC_START = re.compile(r"^async[\w\-]*-start")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program, and how often it runs."""

    kind: str
    """Kind: one of ``KINDS``."""
    shape: str
    """Output on one device: ``bf16[1,4096,11008]``."""
    op_name: str
    """Name of the operation in the traced function."""
    num_devices: int
    """Number of devices in each of its groups."""
    times: int
    """Number of runs in one call of the program."""
    result_bytes: float
    """Bytes of the output on one device in one run."""
    is_async: bool
    """Whether other instructions run between its start and its end."""
    hidden_cycles: int
    """Estimated cycles of those instructions, in one run, without the bundles of kernels."""

    @property
    def sent_bytes(self) -> float:
        """Bytes that one device receives in all runs, by the best algorithm. With k devices: (k - 1) / k of the
        output of an all-gather or an all-to-all, twice that for an all-reduce, k - 1 times the output of a
        reduce-scatter."""
        k = self.num_devices
        share = {
            "all-reduce": 2 * (k - 1) / k,
            "reduce-scatter": k - 1,
            "collective-permute": 1.0,
        }.get(self.kind, (k - 1) / k)
        return self.times * share * self.result_bytes


def collectives(text: str) -> list[Collective]:
    """Returns every collective of ``compiled.as_text()`` that moves data, in the order in which they run."""
    module = parse(text)
    found: list[Collective] = []
    for lines, times in _bodies(module):
        seen: set[str] = set()
        for index, line in enumerate(lines):
            for inner in _inside(module, line):
                match = OPCODE.fullmatch(inner.opcode)
                if match is None or _group_size(inner, module) < 2:
                    continue
                channel = CHANNEL.search(inner.text)
                name = f"{match[1]} {channel[1]}" if channel else f"{inner.name} {line.name}"
                if name in seen:
                    continue
                seen.add(name)
                is_start = (
                    bool(match[2]) or line.opcode == "async-start" or bool(ASYNC_START.match(line.name))
                )
                between = _between(lines, index) if is_start else []
                found.append(
                    Collective(
                        kind=match[1],
                        shape=_result(inner)[0],
                        op_name=inner.op_name or line.op_name,
                        num_devices=_group_size(inner, module),
                        times=times,
                        result_bytes=_result(inner)[1],
                        is_async=is_start,
                        hidden_cycles=_cycles(module, between),
                    )
                )
    return found


def _bodies(module: Module) -> Iterable[tuple[list[Instruction], int]]:
    """Yields every computation that runs, once, with how often it runs: loops and branches included."""
    pending, total = [(module.entry, 1)], dict[str, int]()
    while pending:
        name, times = pending.pop()
        total[name] = total.get(name, 0) + times
        for line in module.computations.get(name, []):
            if line.opcode == "while":
                pending.append((line.called("body") or "", times * (module.trip_count(line) or 1)))
            elif line.opcode == "conditional":
                pending += [(branch, times) for branch in line.branches()]
            elif line.opcode == "call":
                pending.append((line.called("to_apply") or "", times))
    return [(module.computations.get(name, []), times) for name, times in total.items()]


def _inside(module: Module, line: Instruction) -> list[Instruction]:
    """Returns the instruction itself, and those of the fusion or asynchronous computation that it is."""
    if line.opcode in ("fusion", "async-start"):
        return [line, *module.computations.get(line.called("calls") or "", [])]
    return [line]


def _between(lines: list[Instruction], index: int) -> list[Instruction]:
    """Returns what runs between a start and its done: the first instruction that waits for it or its output."""
    handed_on = {lines[index].name}
    between = []
    for line in lines[index + 1 :]:
        reads = not handed_on.isdisjoint(line.operands)
        if reads and (DONE.search(line.opcode) or "-done" in line.name):
            break
        if reads:
            handed_on.add(line.name)
        between.append(line)
    return between


def _cycles(module: Module, lines: list[Instruction]) -> int:
    total = 0
    for line in lines:
        total += line.estimated_cycles or 0
        if line.opcode == "while":
            body = line.called("body") or ""
            trips = module.trip_count(line) or 1
            total += sum((inner.estimated_cycles or 0) * times for inner, times in module.walk(body, trips))
    return total


def _result(line: Instruction) -> tuple[str, float]:
    """Returns the shape and the bytes of the output on one device."""
    shapes = [shape for shape in shapes_of(line.type) if shape.sizes]
    if line.opcode.endswith("-start") and line.opcode.startswith(("all-gather", "collective-permute")):
        # Inputs come first, then results, then contexts.
        shapes = shapes[len(line.operands) : 2 * len(line.operands)]
    text = " ".join(f"{shape.dtype}[{','.join(map(str, shape.sizes))}]" for shape in shapes)
    return text, sum((shape.num_bytes for shape in shapes), 0.0)


def _group_size(line: Instruction, module: Module) -> int:
    """Returns the number of devices of a group, in any of the ways to print groups; 2 for pairs of a permute."""
    text = line.text
    if "source_target_pairs=" in text:
        return 2
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text)
    if mesh:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        count = 1
        for axis in re.findall(r"'([^']+)'", mesh[2]):
            count *= int(sizes[axis])
        return count
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", text)
    if iota:
        return int(iota[2])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", text)
    if listed:
        return len(listed[1].split(","))
    return module.num_partitions if "replica_groups={}" in text else 1
