"""``alm compile``: memory that a training needs on each chip of an absent slice, and the estimated time of its step
there.

State and batch are known from shapes and shardings; the peak of a step is the compiler's, which places every buffer;
times are estimates (`estimates`).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from alm_jax.bench.by_module import Share, by_module
from alm_jax.bench.counting import Counts, count_jaxpr
from alm_jax.bench.estimates import ASSUMPTIONS, estimates
from alm_jax.bench.figures import memory_figures
from alm_jax.bench.footprint import Footprint, Held, measure_footprint
from alm_jax.bench.kernel_cycles import call_cycles
from alm_jax.bench.roofline import kernel_key
from alm_jax.bench.step import (
    OURS,
    Row,
    abstract_batch,
    build,
    describe,
    mesh_of,
    mesh_text,
    model_flops,
    num_parameters,
)
from alm_jax.bench.topology import Topology, compile_for, read_name
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.sharding import num_batch_shards

NUM_SHOWN = 8
"""Number of the largest parameters and the most expensive modules that are listed."""
MODULE_DEPTH = 3
"""Number of parts of a module's name: ``Llama/blocks/mlp``."""
GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledStep:
    """A training on a topology."""

    topology: str
    footprint: Footprint
    """Memory held from step to step."""
    row: Row | None
    """The row that `alm bench step` makes; None where the step was not compiled."""
    modules: Mapping[str, Share]
    """Share of each module; empty where it was not requested."""

    def to_json(self) -> dict[str, Any]:
        """Everything that `show` prints."""
        held = self.footprint
        return {
            "config": held.config,
            "topology": self.topology,
            "mesh": held.mesh,
            "parameters": held.num_parameters,
            "trained": held.num_trained,
            "bytes_per_chip": held.bytes_per_device,
            "total_bytes_per_chip": held.total_bytes,
            "largest": [dataclasses.asdict(array) for array in held.largest(NUM_SHOWN)],
            "replicated": [dataclasses.asdict(array) for array in held.replicated],
            "step": self.row,
            "modules": {name: dataclasses.asdict(share) for name, share in self.modules.items()},
        }


def compile_step(
    config: ExperimentConfig,
    name: str,
    topology: Topology | None,
    *,
    with_modules: bool = False,
) -> CompiledStep:
    """Lays ``config`` out on the topology of that name, and compiles its step where ``topology`` is given.

    Raises UserError where the config's parts do not fit each other or the mesh.
    """
    footprint = measure_footprint(config, read_name(name)[0])
    if topology is None:
        return CompiledStep(topology=name, footprint=footprint, row=None, modules={})
    row, text, counts = compile_row(config, topology)
    modules: Mapping[str, Share] = {}
    if with_modules and text:
        listed = {kernel_key(call.inputs): call_cycles(call, topology.name) for call in counts.kernels}
        modules = by_module(text, topology.chip, listed, depth=MODULE_DEPTH)
    return CompiledStep(topology=name, footprint=footprint, row=row, modules=modules)


def compile_row(config: ExperimentConfig, topology: Topology) -> tuple[Row, str, Counts]:
    """Compiles a config's step for absent devices; returns its row, its text, and its counts."""
    parallel = build(config, mesh_of(config, topology))
    row = describe(config, OURS, parallel.mesh.size, topology.platform, topology.name)
    row |= {"parameters": num_parameters(parallel), "mesh": mesh_text(parallel)}
    row["flops"] = model_flops(config, parallel.mesh.size)
    traced = parallel.trace_step(abstract_batch(config))
    counts = count_jaxpr(traced.jaxpr, num_devices=parallel.mesh.size)
    compiled = compile_for(traced.lower(), topology)
    row |= {"hbm_limit": topology.chip.hbm_bytes, "fits": compiled.fits, "error": compiled.error}
    row["compile_sec"] = compiled.seconds
    text = compiled.text or ""
    if text:
        row |= memory_figures(compiled.executable)
        row |= estimates(text, row["flops"], topology, counts)
    return row, text, counts


def search_batch(config: ExperimentConfig, topology: Topology) -> list[Row]:
    """Searches for the largest batch that fits: yields the row of each compiled batch, the result last; the batch
    doubles first.

    Sizes are multiples of what the mesh divides, from the config's own on; the search ends within an eighth.
    """
    unit = config.training.num_microbatches * num_batch_shards(mesh_of(config, topology))
    rows: list[Row] = []

    def fits(units: int) -> bool:
        training = dataclasses.replace(config.training, batch_size=units * unit)
        row, _, _ = compile_row(dataclasses.replace(config, training=training), topology)
        rows.append(row)
        return bool(row["fits"])

    low, high = 0, max(1, config.training.batch_size // unit)
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(1, math.ceil(low / 8)):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return rows


def show(found: CompiledStep, console: Console) -> None:
    """Formats the figures for people."""
    held, row = found.footprint, found.row
    _, chip = read_name(found.topology)
    mesh = " x ".join(f"{axis} {size}" for axis, size in held.mesh.items() if size > 1) or "one device"
    console.print(
        f"{held.config} on {found.topology} ({mesh}): {held.num_parameters:,} parameters, "
        f"{held.num_trained:,} of them trained",
        soft_wrap=True,
    )
    table = Table("held", "GiB a chip", box=None)
    for kind, size in held.bytes_per_device.items():
        table.add_row(kind, f"{size / GIB:.3f}")
    table.add_row("together", f"{held.total_bytes / GIB:.3f}")
    table.add_row("a chip has", f"{chip.hbm_bytes / GIB:.1f}")
    console.print(table, _list("largest parameters", held.largest(NUM_SHOWN)))
    if held.replicated:
        console.print(_list("large, and whole on every chip", held.replicated))
    if row is not None:
        console.print(_describe_step(row))
    if found.modules:
        console.print(_list_modules(found.modules))


def _describe_step(row: Row) -> Any:
    if row["error"]:
        return f"the step does not compile: {row['error']}"
    says = "fits" if row["fits"] else "does not fit"
    peak = (
        f"the step by the compiler: {row['peak_bytes'] / GIB:.2f} GiB at its peak, {row['temp_bytes'] / GIB:.2f} of "
        f"them temporary: it {says}"
    )
    lines: list[Any] = [peak]
    if row["estimated_ms"] is None:
        return Group(*lines)
    table = Table("estimate of the step (nothing ran)", "ms", "MFU", box=None)
    names = {"estimated": "computation, XLA's cycles", "roofline": "computation, roofline"}
    for name, title in (names | {"predicted": "XLA's cycles, and traffic that nothing hides"}).items():
        table.add_row(title, f"{row[f'{name}_ms']:,.1f}", f"{row[f'{name}_mfu']:.1%}")
    lines.append(table)
    table = Table("collectives", "", "runs", "GB sent", "ms", "hidden ms", box=None)
    for group in row["collectives"]:
        kind = "asynchronous" if group["is_async"] else "synchronous"
        sent, times = f"{group['sent_bytes'] / 1e9:.2f}", (f"{group['ms']:.1f}", f"{group['hidden_ms']:.1f}")
        table.add_row(group["kind"], kind, str(group["runs"]), sent, *times)
    lines.append(table)
    table = Table("largest collectives", "runs", "GB sent", "hidden ms", "of", box=None)
    for one in row["largest"]:
        shape, hidden = one["shape"][:32], f"{one['hidden_ms']:.1f} of {one['ms']:.1f}"
        table.add_row(
            f"{one['kind']} {shape}",
            str(one["runs"]),
            f"{one['sent_bytes'] / 1e9:.2f}",
            hidden,
            one["op_name"][-44:],
        )
    return Group(*lines, table, f"predicted, if {ASSUMPTIONS}")


def _list(title: str, arrays: list[Held]) -> Table:
    table = Table(title, "shape", "cut over", "MiB a chip", box=None)
    for held in arrays:
        cut = ", ".join(axis or "-" for axis in held.cut) if any(held.cut) else "nothing"
        table.add_row(held.path, str(list(held.shape)), cut, f"{held.bytes_per_device / 2**20:,.1f}")
    return table


def _list_modules(modules: Mapping[str, Share]) -> Table:
    table = Table("module", "Mcycles (XLA)", "ms (roofline)", "HBM GB", box=None)
    for name, share in list(modules.items())[: 3 * NUM_SHOWN]:
        figures = share.cycles / 1e6, 1e3 * share.roofline_s, share.hbm_bytes / 1e9
        table.add_row(name, *(f"{figure:,.2f}" for figure in figures))
    return table
