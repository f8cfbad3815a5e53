"""The zoo as tables: every published variant, and the difference of each model from its reference implementation."""

import dataclasses
import math
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from alm_jax.encoders import family as families
from alm_jax.interop.formats import PARITY, formats_around
from alm_jax.interop.parity import measure
from alm_jax.interop.real_inputs import load_real_inputs
from alm_jax.models.catalogue import FAMILIES

FLOAT64_TOLERANCE = 1e-8
"""Relative difference in float64 above which a model differs from its reference: rounding is below 1e-12."""
PACKAGES = ("jax", "flax", "torch", "transformers", "numpy")


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
    """The versions of Python and of the packages that a comparison ran with."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}


def write_parity_page(rows: Sequence[dict[str, Any]]) -> str:
    """Writes docs/parity.md."""
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
