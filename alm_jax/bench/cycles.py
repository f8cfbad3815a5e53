"""XLA:TPU's own cycle estimates, rolled up over a program, loops multiplied.

The TPU compiler writes ``estimated_cycles`` beside the operations of an optimised module. Their sum is a
deterministic proxy for compute time, good for comparing two programs under one compiler version, and an estimate:
it knows neither the interconnect nor what overlaps, and the inside of a Pallas kernel counts only where the compiler
states it. Never quote it as speed.
"""

import dataclasses
import re

from alm_jax.bench.hlo import Instruction, parse

ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Cycles:
    """Estimated cycles of one call on one device."""

    total: int
    """All of them."""
    products: int
    """Those of operations around a product (convolutions and fusions into one)."""
    num_unknown_loops: int
    """Loops with no trip count in the text; counted once."""


def estimate_cycles(text: str) -> Cycles | None:
    """Cycles of ``compiled.as_text()``; None where the compiler wrote no estimates (any but XLA:TPU)."""
    if not ESTIMATE.search(text):
        return None
    module = parse(text)
    known: dict[str, Cycles] = {}

    def cost(name: str) -> Cycles:
        if name in known:
            return known[name]
        total = products = unknown = 0
        for line in module.computations.get(name, []):
            found = ESTIMATE.search(line.text)
            cycles = int(found.group(1)) if found else 0
            total += cycles
            products += cycles if _is_product(line) else 0
            times, inner = 1, []
            if line.opcode == "while":
                trips = module.trip_count(line)
                unknown += trips is None
                times = 1 if trips is None else trips
                inner = [cost(line.called("body") or "")]
            elif line.opcode == "conditional":
                inner = sorted((cost(branch) for branch in line.branches()), key=lambda c: c.total)[-1:]
            elif line.opcode == "call":
                inner = [cost(line.called("to_apply") or "")]
            for part in inner:
                total += times * part.total
                products += times * part.products
                unknown += part.num_unknown_loops
        known[name] = Cycles(total, products, unknown)
        return known[name]

    return cost(module.entry)


def _is_product(line: Instruction) -> bool:
    return line.opcode == "convolution" or "kind=kOutput" in line.text
