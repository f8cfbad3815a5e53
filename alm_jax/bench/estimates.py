"""Estimated time of a compiled TPU program, by two methods, and its traffic between chips. Nothing is run."""

import collections
from typing import Any

from alm_jax.bench.chips import Chip
from alm_jax.bench.collectives import Collective, collectives
from alm_jax.bench.counting import Counts
from alm_jax.bench.cycles import estimate_cycles
from alm_jax.bench.kernel_cycles import call_cycles
from alm_jax.bench.roofline import kernel_key, roofline
from alm_jax.bench.topology import Topology

RING_LINKS = 2
"""Number of a chip's links that one collective uses: both directions along one axis of the torus."""
NUM_HIDERS = 6
"""Number of the largest collectives of a program that are listed one by one."""
ASSUMPTIONS = (
    "a collective runs along one axis of the torus, both ways round, at the full bandwidth of its two links; one that "
    "is synchronous hides behind nothing, an asynchronous one behind the instructions between its start and its end; "
    "collectives do not slow each other down, and inputs are there in time"
)
"""Assumptions behind a predicted time."""

Row = dict[str, Any]


def estimates(text: str, flops: float, topology: Topology, counts: Counts) -> Row:
    """The estimates for ``compiled.as_text()`` on one device; nothing where the compiler estimates no cycles.

    ``flops`` are the model's, without padding and without anything done twice; ``counts`` the program's own.

    ==================  =============================================================================================
    estimated_cycles    XLA's, Pallas kernels' bundles included; ``kernel_cycles`` are these alone
    estimated_ms, _mfu  by XLA's cycles at the chip's clock, and no less than HBM bytes at the bandwidth
    roofline_ms, _mfu   by `roofline`
    hbm_bytes           to and from HBM, tiles' padding included
    collectives         by kind: runs, bytes over the interconnect, milliseconds, and how much of these is hidden
    largest             the largest collectives one by one
    predicted_ms        XLA's time and what of the collectives nothing hides; predicted_mfu by it
    ==================  =============================================================================================

    Raises RuntimeError where an MFU comes out above 1: then some of the program was not read.
    """
    cycles, chip = estimate_cycles(text), topology.chip
    if cycles is None or chip.clock_hz is None:
        return {}
    listed = {call: call_cycles(call, topology.name) for call in counts.kernels}
    kernels = sum(times * listed[call] for call, times in counts.kernels.items())
    bound = roofline(text, chip, {kernel_key(call.inputs): listed[call] for call in listed})
    seconds = max((cycles.total + kernels) / chip.clock_hz, bound.hbm_bytes / chip.hbm_bytes_per_s)
    sent = collectives(text)
    exposed = sum(_seconds(one, chip) - _hidden(one, chip) for one in sent)
    row: Row = {
        "estimated_cycles": cycles.total + kernels,
        "kernel_cycles": kernels,
        "estimated_ms": 1e3 * seconds,
        "roofline_ms": 1e3 * bound.seconds,
        "hbm_bytes": bound.hbm_bytes,
        "collectives": summarise(sent, chip),
        "largest": [
            describe(one, chip) for one in sorted(sent, key=lambda one: -one.sent_bytes)[:NUM_HIDERS]
        ],
        "predicted_ms": 1e3 * (seconds + exposed),
    }
    for name in ("estimated", "roofline", "predicted"):
        row[f"{name}_mfu"] = flops / (row[f"{name}_ms"] / 1e3) / chip.peak_flops
        if row[f"{name}_mfu"] > 1:
            raise RuntimeError(
                f"{row[f'{name}_ms']:.4g} ms for {flops:.4g} FLOPs are an MFU of {row[f'{name}_mfu']:.0%}: the "
                "program's text was not read to its end, or the FLOPs are not those of this program"
            )
    return row


def summarise(sent: list[Collective], chip: Chip) -> list[Row]:
    """Summarises the collectives of a program by kind, synchronous and asynchronous ones separately."""
    groups: dict[tuple[str, bool], list[Collective]] = collections.defaultdict(list)
    for one in sent:
        groups[one.kind, one.is_async].append(one)
    return [
        {
            "kind": kind,
            "is_async": is_async,
            "runs": sum(one.times for one in group),
            "result_bytes": sum(one.times * one.result_bytes for one in group),
            "sent_bytes": sum(one.sent_bytes for one in group),
            "ms": 1e3 * sum(_seconds(one, chip) for one in group),
            "hidden_ms": 1e3 * sum(_hidden(one, chip) for one in group),
        }
        for (kind, is_async), group in sorted(groups.items())
    ]


def describe(one: Collective, chip: Chip) -> Row:
    """Describes one collective, and what hides it."""
    return {
        "kind": one.kind,
        "shape": one.shape,
        "is_async": one.is_async,
        "runs": one.times,
        "devices": one.num_devices,
        "sent_bytes": one.sent_bytes,
        "ms": 1e3 * _seconds(one, chip),
        "hidden_ms": 1e3 * _hidden(one, chip),
        "op_name": one.op_name,
    }


def _seconds(one: Collective, chip: Chip) -> float:
    return one.sent_bytes / (min(RING_LINKS, chip.num_links) * chip.link_bytes_per_s)


def _hidden(one: Collective, chip: Chip) -> float:
    assert chip.clock_hz is not None
    return min(_seconds(one, chip), one.times * one.hidden_cycles / chip.clock_hz)
