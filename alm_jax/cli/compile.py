"""``alm compile CONFIG --topology v5e:16x16``: what a training takes of each chip of a slice that is not here.

State and batch are known from shapes and shardings; the peak of a step is the compiler's, which places every buffer.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from alm_jax.bench import step
from alm_jax.bench.footprint import Footprint, Held, measure_footprint
from alm_jax.bench.topology import read_name
from alm_jax.cli.arguments import Parser, read_config
from alm_jax.cli.bench import prepare_jax

NUM_SHOWN = 8
"""The largest parameters that are listed."""
GIB = 2**30
WIDTH = 120
"""Columns of the tables, whatever the terminal: paths are long."""


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser(
        "compile", "Lay a training out on devices that are not here, and compile its step for them."
    )
    parser.add_argument("config", help="a file with get_config(), such as configs/demo.py")
    parser.add_argument("--topology", required=True, help="v5e:16x16, v5p:4x4x4, h100:8, ...")
    parser.add_argument(
        "--no-compile",
        action="store_true",
        help="shapes and shardings alone: seconds, and no compiler needed",
    )
    parser.add_argument("--json", help="also write it as one JSON object to this file, or to stdout with -")
    parser.epilog = "Fields of the config are options, as in `alm pretrain CONFIG --help`."
    own, overrides = parser.parse_known_args(args)
    num_devices, chip = read_name(own.topology)
    topology = prepare_jax(None if own.no_compile else own.topology, 1, with_peers=False)
    config = read_config(own.config, overrides, prog=f"alm compile {own.config}")
    footprint = measure_footprint(config, num_devices)
    row = None if topology is None else step.compile_row(config, topology)
    if own.json == "-":
        print(json.dumps(to_json(footprint, own.topology, row), indent=2))
        return
    show(footprint, own.topology, chip.hbm_bytes, row)
    if own.json:
        Path(own.json).write_text(json.dumps(to_json(footprint, own.topology, row), indent=2) + "\n")


def to_json(footprint: Footprint, topology: str, row: step.Row | None) -> dict[str, Any]:
    """Everything that `show` shows, and the row of `alm bench step`."""
    return {
        "config": footprint.config,
        "topology": topology,
        "mesh": footprint.mesh,
        "parameters": footprint.num_parameters,
        "trained": footprint.num_trained,
        "bytes_per_chip": footprint.bytes_per_device,
        "total_bytes_per_chip": footprint.total_bytes,
        "largest": [dataclasses.asdict(held) for held in footprint.largest(NUM_SHOWN)],
        "replicated": [dataclasses.asdict(held) for held in footprint.replicated],
        "step": row,
    }


def show(footprint: Footprint, topology: str, hbm_bytes: int, row: step.Row | None) -> None:
    """The figures for a person."""
    console = Console(file=sys.stdout, highlight=False, markup=False, width=WIDTH)
    mesh = " x ".join(f"{axis} {size}" for axis, size in footprint.mesh.items() if size > 1) or "one device"
    console.print(
        f"{footprint.config} on {topology} ({mesh}): {footprint.num_parameters:,} parameters, "
        f"{footprint.num_trained:,} of them trained",
        soft_wrap=True,
    )
    table = Table("held", "GiB a chip", box=None)
    for kind, size in footprint.bytes_per_device.items():
        table.add_row(kind, f"{size / GIB:.3f}")
    table.add_row("together", f"{footprint.total_bytes / GIB:.3f}")
    table.add_row("a chip has", f"{hbm_bytes / GIB:.1f}")
    console.print(table)
    console.print(_list("largest parameters", footprint.largest(NUM_SHOWN)))
    if footprint.replicated:
        console.print(_list("large, and whole on every chip", footprint.replicated))
    if row is None:
        return
    if row["error"]:
        console.print(f"the step does not compile: {row['error']}", soft_wrap=True)
        return
    says = "fits" if row["fits"] else "does not fit"
    console.print(
        f"the step by the compiler: {row['peak_bytes'] / GIB:.2f} GiB at its peak, {row['temp_bytes'] / GIB:.2f} of "
        f"them temporary: it {says}",
        soft_wrap=True,
    )


def _list(title: str, arrays: Sequence[Held]) -> Table:
    table = Table(title, "shape", "cut over", "MiB a chip", box=None)
    for held in arrays:
        cut = ", ".join(axis or "-" for axis in held.cut) if any(held.cut) else "nothing"
        table.add_row(held.path, str(list(held.shape)), cut, f"{held.bytes_per_device / 2**20:,.1f}")
    return table
