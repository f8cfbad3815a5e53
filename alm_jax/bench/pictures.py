"""The two pictures of a sweep over batch sizes: memory, and throughput, of every form and peer."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from alm_jax.evaluation.report.pictures import BLUE, GREEN, MUTED, PURPLE, STYLE, VERMILION

Row = dict[str, Any]
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, "#e69f00", "#56b4e9", "#1f2933", "#5f6c7b")
MARKERS = "osD^vP*X"
GIB = 2**30


def write_pictures(rows: Sequence[Row], folder: Path, stem: str) -> None:
    """Writes ``STEM_memory.png`` and ``STEM_throughput.png``, where there are two batch sizes to draw."""
    for name, picture in (("memory", draw_memory(rows)), ("throughput", draw_throughput(rows))):
        if picture is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{stem}_{name}.png").write_bytes(picture)


def draw_memory(rows: Sequence[Row]) -> bytes | None:
    """Plots bytes against batch size, PNG; None for fewer than two batch sizes.

    On a CPU the growth of the resident memory, which peers have too; elsewhere the compiler's peak on one device.
    """
    resident = any(row["rss_bytes"] is not None for row in rows)
    key = "rss_bytes" if resident else "peak_bytes"
    what = "additional resident memory" if resident else "peak memory on one device, by the compiler"
    limit = next((row["hbm_limit"] for row in rows if row["hbm_limit"]), None)
    return _draw(rows, lambda row: row[key], f"{_subject(rows)}: {what}", _binary, limit)


def draw_throughput(rows: Sequence[Row]) -> bytes | None:
    """Pairs per second against batch, PNG; where nothing ran, the compiler's estimate of cycles, labelled so.

    None where there are not two batch sizes.
    """
    if any(row["pairs_per_s"] for row in rows):
        return _draw(
            rows,
            lambda row: row["pairs_per_s"],
            f"{_subject(rows)}: pairs/s, forward and backward",
            _plain,
            None,
        )
    return _draw(
        rows,
        lambda row: row["estimated_cycles"],
        f"{_subject(rows)}: cycles a pass, an estimate of the compiler",
        _plain,
        None,
    )


def _subject(rows: Sequence[Row]) -> str:
    first = rows[0]
    where = first["topology"] or (
        first["platform"] if first["devices"] == 1 else f"{first['devices']} x {first['platform']}"
    )
    losses, dtypes = (", ".join(dict.fromkeys(row[key] for row in rows)) for key in ("loss", "dtype"))
    return f"{losses}, {dtypes}, width {first['dim']}, {where}"


@matplotlib.rc_context(STYLE)
def _draw(rows: Sequence[Row], value: Any, title: str, formatter: Any, limit: float | None) -> bytes | None:
    batches = sorted({row["batch"] for row in rows})
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if value(row):
            curves.setdefault(_label(row, rows), []).append((row["batch"], float(value(row))))
    if len(batches) < 2 or not curves:
        return None
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2 if formatter is _binary else 10)
    for index, (label, points) in enumerate(curves.items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        x, y = zip(*sorted(points), strict=True)
        axes.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.8, label=label)
    if limit is not None:
        axes.axhline(limit, color=MUTED, linestyle="--", linewidth=1)
        axes.annotate(
            "what the device has",
            (batches[0], limit),
            color=MUTED,
            fontsize=9,
            xytext=(0, 3),
            textcoords="offset points",
        )
    axes.set_xticks(batches, [f"{batch:,}" for batch in batches])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(
        LogLocator(base=2, numticks=9)
        if formatter is _binary
        else LogLocator(base=10, subs=(1, 2, 5), numticks=12)
    )
    axes.yaxis.set_major_formatter(FuncFormatter(formatter))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.set_xlabel("batch (log)")
    axes.set_title(title.replace(": ", "\n", 1))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _label(row: Row, rows: Sequence[Row]) -> str:
    """Returns the form's name, with the other settings that vary within the sweep."""
    extra = [str(row[key]) for key in ("loss", "dtype") if len({other[key] for other in rows}) > 1]
    return " ".join([*extra, row["impl"]])


def _binary(value: float | int, _: Any) -> str:
    if value <= 0:
        return "0"
    step = min(int(math.log2(value) // 10), 4)
    return f"{value / 2 ** (10 * step):.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[step]}"


def _plain(value: float | int, _: Any) -> str:
    return f"{value:,.0f}" if value < 1e6 else f"{value / 1e6:,.3g} M"
