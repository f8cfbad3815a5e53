"""Fields of the rows of every benchmark: from the clock, from the compiler, from the jaxpr."""

import sys
from collections.abc import Callable
from typing import Any

import jax

from alm_jax.bench import resident
from alm_jax.bench.chips import chip_of
from alm_jax.bench.counting import Counts
from alm_jax.bench.estimates import estimates
from alm_jax.bench.memory import memory_of
from alm_jax.bench.timing import Timing
from alm_jax.bench.topology import Topology, compile_for

Row = dict[str, Any]

UNMEASURED: Row = {
    "temp_bytes": None,
    "peak_bytes": None,
    "rss_bytes": None,
    "flops": None,
    "estimated_cycles": None,
    "kernel_cycles": None,
    "estimated_ms": None,
    "estimated_mfu": None,
    "roofline_ms": None,
    "roofline_mfu": None,
    "hbm_bytes": None,
    "collectives": None,
    "largest": None,
    "predicted_ms": None,
    "predicted_mfu": None,
    "step_ms": None,
    "mfu": None,
    "times_ours": None,
    "hbm_limit": None,
    "fits": None,
    "error": None,
}
"""Returns the fields before anything is measured."""


def step_ms(timing: Timing) -> dict[str, float]:
    """Milliseconds: the fastest run, the median, and the slowest minus the fastest."""
    return {name: 1e3 * getattr(timing, name) for name in ("min", "median", "spread")}


def times_ours(own: Timing, other: Timing) -> dict[str, float]:
    """Ratio of the other candidate's time to this one's, over pairs of neighbouring runs."""
    pairs = sorted(own.ratios(other))
    return {"min": pairs[0], "median": pairs[len(pairs) // 2], "max": pairs[-1]}


def utilisation(flops: float, timing: Timing) -> float | None:
    """MFU on the present devices, by the peak of ``chips``; None for a kind that is not in the table, such as a
    CPU."""
    chip = chip_of(jax.devices()[0].device_kind)
    return None if chip is None else flops / timing.median / chip.peak_flops


def memory_figures(compiled: Any) -> Row:
    """Scratch memory and peak, as the compiler states them."""
    memory = memory_of(compiled)
    return {"temp_bytes": memory.temp_bytes, "peak_bytes": memory.peak_bytes}


def topology_figures(lowered: Any, topology: Topology, flops: float, counts: Counts) -> Row:
    """Figures that the compiler gives for a program for absent devices; a failure is a figure too.

    ``flops`` are those of the model, ``counts`` those of the program.
    """
    compiled = compile_for(lowered, topology)
    row: Row = {"hbm_limit": topology.chip.hbm_bytes, "fits": compiled.fits, "error": compiled.error}
    if compiled.executable is not None:
        row |= memory_figures(compiled.executable)
        row |= estimates(compiled.executable.as_text(), flops, topology, counts)
    return row


def resident_bytes(function: Callable[..., Any], **arguments: Any) -> int | None:
    """Runs ``resident.growth_of`` for a function at the top of a module; None except on a CPU under Linux."""
    if jax.default_backend() != "cpu" or sys.platform != "linux":
        return None
    return resident.growth_of(f"{function.__module__}:{function.__qualname__}", **arguments)
