"""XLA:TPU's own cycle estimates, rolled up over a program, loops multiplied.

The TPU compiler writes ``estimated_cycles`` beside the operations of an optimised module. Their sum is a
deterministic proxy for compute time, good for comparing two programs under one compiler version, and an estimate:
it ignores the interconnect and overlap, and the inside of a Pallas kernel counts only where the compiler
states it. Never quote it as speed.
"""

import dataclasses

from alm_jax.bench.hlo import ESTIMATE, Instruction, parse


@dataclasses.dataclass(frozen=True)
class Cycles:
    """Estimated cycles of one call on one device."""

    total: int
    """Cycles of all operations."""
    products: int
    """Cycles of operations around a product (convolutions and fusions into one)."""
    num_unknown_loops: int
    """Number of loops without a trip count in the text; counted as one trip."""


def estimate_cycles(text: str) -> Cycles | None:
    """Returns the cycles of ``compiled.as_text()``; None where the compiler wrote no estimates (any but XLA:TPU)."""
    if not ESTIMATE.search(text):
        return None
    module = parse(text)
    total = products = unknown = 0
    for line, times in module.walk():
        cycles = times * (line.estimated_cycles or 0)
        total += cycles
        products += cycles if _is_product(line) else 0
        unknown += line.opcode == "while" and module.trip_count(line) is None
    return Cycles(total, products, unknown)


def _is_product(line: Instruction) -> bool:
    return line.opcode == "convolution" or "kind=kOutput" in line.text
