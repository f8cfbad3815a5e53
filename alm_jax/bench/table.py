"""Rows for a person: a table on the terminal."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]


def print_rows(rows: Sequence[Row], columns: Sequence[Column]) -> None:
    """Prints the rows; a column in which every row is empty is left out, and errors stand below."""
    table = Table(box=None, header_style="bold")
    shown = [(title, cells) for title, cell in columns if any(cells := [cell(row) for row in rows])]
    for title, cells in shown:
        table.add_column(title, justify="left" if not cells[0][:1].isdigit() else "right")
    for index in range(len(rows)):
        table.add_row(*(cells[index] for _, cells in shown))
    console = Console(width=None if Console().is_terminal else 200, highlight=False)
    console.print(table)
    for row in rows:
        if row.get("error"):
            console.print(
                f"{row.get('loss', row.get('name', ''))} {row.get('impl', '')} {row.get('batch', '')}: "
                f"{row['error']}",
                markup=False,
            )


def count(key: str) -> Callable[[Row], str]:
    """Whole numbers."""
    return lambda row: "" if row.get(key) is None else f"{row[key]:,.0f}"


def mebibytes(key: str) -> Callable[[Row], str]:
    """Bytes, as MiB."""
    return lambda row: "" if row.get(key) is None else f"{row[key] / 2**20:,.1f}"


def text(key: str) -> Callable[[Row], str]:
    """Whatever it is."""
    return lambda row: "" if row.get(key) is None else str(row[key])


def milliseconds(part: str, key: str = "step_ms") -> Callable[[Row], str]:
    """One figure of a timing."""
    return lambda row: "" if not row.get(key) else f"{row[key][part]:,.1f}"


def number(key: str, digits: int) -> Callable[[Row], str]:
    """A real number."""
    return lambda row: "" if row.get(key) is None else f"{row[key]:,.{digits}f}"


def yes_no(key: str) -> Callable[[Row], str]:
    """A truth."""
    return lambda row: {True: "yes", False: "no", None: ""}[row.get(key)]


LOSS_COLUMNS: Sequence[Column] = (
    ("loss", text("loss")),
    ("impl", text("impl")),
    ("batch", count("batch")),
    ("dim", text("dim")),
    ("vocab", count("vocab")),
    ("dtype", text("dtype")),
    ("devices", text("devices")),
    ("on", lambda row: row["topology"] or row["platform"]),
    ("temp MiB", mebibytes("temp_bytes")),
    ("peak MiB", mebibytes("peak_bytes")),
    ("resident MiB", mebibytes("rss_bytes")),
    ("FLOPs / (B² D / n)", number("flops_over_b2d", 2)),
    ("received MiB", mebibytes("collective_bytes")),
    ("cycles (estimate)", count("estimated_cycles")),
    ("ms min", milliseconds("min")),
    ("ms median", milliseconds("median")),
    ("ms spread", milliseconds("spread")),
    ("pairs/s", count("pairs_per_s")),
    ("fits", yes_no("fits")),
)
STEP_COLUMNS: Sequence[Column] = (
    ("config", text("config")),
    ("impl", text("impl")),
    ("batch", count("batch")),
    ("tokens", text("text_tokens")),
    ("dtype", text("dtype")),
    ("remat", text("remat")),
    ("mesh", text("mesh")),
    ("on", lambda row: row["topology"] or row["platform"]),
    ("parameters", count("parameters")),
    ("temp MiB", mebibytes("temp_bytes")),
    ("peak MiB", mebibytes("peak_bytes")),
    ("resident MiB", mebibytes("rss_bytes")),
    ("GFLOP", lambda row: "" if row["flops"] is None else f"{row['flops'] / 1e9:,.1f}"),
    ("ms (estimate)", number("estimated_ms", 1)),
    ("MFU (estimate)", number("estimated_mfu", 3)),
    ("ms min", milliseconds("min")),
    ("ms median", milliseconds("median")),
    ("ms spread", milliseconds("spread")),
    ("clips/s", number("clips_per_s", 2)),
    ("MFU", number("mfu", 3)),
    ("times ours", lambda row: "" if not row["times_ours"] else f"{row['times_ours']['median']:.2f}"),
    ("fits", yes_no("fits")),
)
