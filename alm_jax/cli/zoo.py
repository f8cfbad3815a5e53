"""``alm zoo``: every model there is; ``alm zoo --parity``: how far each is from its oracle."""

import dataclasses
import json
import math
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from alm_jax.cli.arguments import Parser
from alm_jax.encoders import family as families
from alm_jax.errors import AlmError, UserError
from alm_jax.interop.formats import PARITY, formats_around
from alm_jax.interop.parity import measure
from alm_jax.interop.real_inputs import load_real_inputs
from alm_jax.models.catalogue import FAMILIES

FLOAT64_TOLERANCE = 1e-8
"""Above this relative difference in float64 a model is not its oracle: rounding there is under 1e-12."""
PACKAGES = ("jax", "flax", "torch", "transformers", "numpy")


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser("zoo", "List every encoder and language model, or compare each with its oracle.")
    parser.add_argument("--parity", action="store_true", help="compare each with its oracle ([torch] extra)")
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("ALM_DATA_DIR"),
        help="for --parity: the folder with esc10/ and audiocaps/ (default: ALM_DATA_DIR)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the table as JSON; - is standard output")
    parser.add_argument("--out", type=Path, help="for --parity: write the table as Markdown")
    own = parser.parse_args(args)
    if own.out and not own.parity:
        raise UserError("--out goes with --parity")
    if own.parity and own.data is None:
        raise UserError("--parity compares on real recordings and captions: name their folder with --data")
    rows = compare_all(own.data) if own.parity else list_zoo()
    if own.json:
        text = json.dumps({"versions": versions(), "rows": rows} if own.parity else rows, indent=2) + "\n"
        if own.json == "-":
            sys.stdout.write(text)
        else:
            Path(own.json).write_text(text, encoding="utf-8")
    if own.out:
        own.out.write_text(write_parity_page(rows), encoding="utf-8")
    if own.json != "-":
        show(rows)
    wrong = [row["name"] for row in rows if own.parity and not row["passed"]]
    if wrong:
        raise AlmError(f"not equal to their oracles: {', '.join(wrong)}")


def list_zoo() -> list[dict[str, Any]]:
    """A row for each published variant of each family; makes no array."""
    rows = []
    for family in FAMILIES.values():
        for name, config in family.variants.items():
            layouts = formats_around(config)
            shapes = families.abstract(family, config)["params"]
            rows.append(
                {
                    "family": family.name,
                    "name": name,
                    "kind": family.kind,
                    "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)),
                    "front-end": "" if family.frontend is None else type(family.frontend).__name__,
                    "reads": [layout.name for layout in layouts],
                    "writes": [
                        layout.name
                        for layout in layouts
                        if layout.write_config is not None and not layout.ignored
                    ],
                }
            )
    return rows


def compare_all(data_dir: Path) -> list[dict[str, Any]]:
    """A row for each comparison, in float32 and in float64."""
    real = load_real_inputs(data_dir)
    rows = []
    for case in PARITY:
        narrow = measure(case, real, dtype="float32")
        with jax.enable_x64(True):
            wide = measure(case, real, dtype="float64")
        rows.append(
            {
                "name": case.name,
                "oracle": case.oracle_name,
                **{f"float32 {kind}": value for kind, value in dataclasses.asdict(narrow).items()},
                "float32 allowed": case.tolerance,
                **{f"float64 {kind}": value for kind, value in dataclasses.asdict(wide).items()},
                "passed": narrow.relative < case.tolerance and wide.relative < FLOAT64_TOLERANCE,
            }
        )
    return rows


def versions() -> dict[str, str]:
    """Of what a comparison ran with."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}


def write_parity_page(rows: Sequence[dict[str, Any]]) -> str:
    """docs/parity.md."""
    lines = [
        "# Parity",
        "",
        "Each model of the zoo beside its oracle: random weights, brought in through the checkpoint format, and real",
        "inputs: two ESC-10 recordings through our own front-end, or two AudioCaps captions. The largest difference of",
        "the outputs, absolute and relative to the oracle's largest value, in float32 and in float64, where rounding",
        "vanishes and an error would stay. Made by",
        "",
        "    alm zoo --parity --data DIR --out docs/parity.md",
        "",
        "with " + ", ".join(f"{name} {version}" for name, version in versions().items()) + ", on a CPU.",
        "",
        "| model | oracle | float32, absolute | relative | allowed | float64, absolute | relative |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = (
            row["name"],
            f"`{row['oracle']}`",
            f"{row['float32 absolute']:.1e}",
            f"{row['float32 relative']:.1e}",
            f"{row['float32 allowed']:.0e}",
            f"{row['float64 absolute']:.1e}",
            f"{row['float64 relative']:.1e}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Prints the rows as a table."""
    console = Console(file=sys.stdout, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 240  # a file has no width to keep to
    table = Table(box=None, pad_edge=False)
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.1e}"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(value) if isinstance(value, list) else str(value)
