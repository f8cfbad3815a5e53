"""Rows as a table on the terminal."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]


def count(key: str) -> Callable[[Row], str]:
    """Formats whole numbers."""
    return lambda row: "" if row.get(key) is None else f"{row[key]:,.0f}"


def mebibytes(key: str) -> Callable[[Row], str]:
    """Formats bytes, as MiB."""
    return lambda row: "" if row.get(key) is None else f"{row[key] / 2**20:,.1f}"


def text(key: str) -> Callable[[Row], str]:
    """Formats any value."""
    return lambda row: "" if row.get(key) is None else str(row[key])


def milliseconds(part: str, key: str = "step_ms") -> Callable[[Row], str]:
    """Formats one figure of a timing."""
    return lambda row: "" if not row.get(key) else f"{row[key][part]:,.1f}"


def number(key: str, digits: int) -> Callable[[Row], str]:
    """Formats a real number."""
    return lambda row: "" if row.get(key) is None else f"{row[key]:,.{digits}f}"


def yes_no(key: str) -> Callable[[Row], str]:
    """Formats a truth value."""
    return lambda row: {True: "yes", False: "no", None: ""}[row.get(key)]


def _where(row: Row) -> str:
    return row["topology"] or row["platform"]


LOSS_COLUMNS: Sequence[Column] = (
    ("loss", text("loss")),
    ("impl", text("impl")),
    ("batch", count("batch")),
    ("dim", text("dim")),
    ("vocab", count("vocab")),
    ("dtype", text("dtype")),
    ("devices", text("devices")),
    ("on", _where),
    ("temp MiB", mebibytes("temp_bytes")),
    ("peak MiB", mebibytes("peak_bytes")),
    ("resident MiB", mebibytes("rss_bytes")),
    ("FLOPs / (B² D / n)", number("flops_over_b2d", 2)),
    ("received MiB", mebibytes("collective_bytes")),
    ("cycles (estimate)", count("estimated_cycles")),
    ("of them in kernels (bundles)", count("kernel_cycles")),
    ("ms min", milliseconds("min")),
    ("ms median", milliseconds("median")),
    ("ms spread", milliseconds("spread")),
    ("pairs/s", count("pairs_per_s")),
    ("fits", yes_no("fits")),
)


def _times_ours(row: Row) -> str:
    return "" if not row["times_ours"] else f"{row['times_ours']['median']:.2f}"


def _gigaflop(row: Row) -> str:
    return "" if row["flops"] is None else f"{row['flops'] / 1e9:,.1f}"


def _sent(row: Row) -> str:
    sent = sum(group["sent_bytes"] for group in row.get("collectives") or [])
    return f"{sent / 1e9:,.2f}" if sent else ""


MEASURED: Sequence[Column] = (
    ("temp MiB", mebibytes("temp_bytes")),
    ("peak MiB", mebibytes("peak_bytes")),
    ("resident MiB", mebibytes("rss_bytes")),
    ("GFLOP", _gigaflop),
    ("ms (XLA)", number("estimated_ms", 1)),
    ("MFU (XLA)", number("estimated_mfu", 3)),
    ("ms (roofline)", number("roofline_ms", 1)),
    ("MFU (roofline)", number("roofline_mfu", 3)),
    ("sent GB", _sent),
    ("ms (predicted)", number("predicted_ms", 1)),
    ("ms min", milliseconds("min")),
    ("ms median", milliseconds("median")),
    ("ms spread", milliseconds("spread")),
    ("MFU", number("mfu", 3)),
    ("times ours", _times_ours),
    ("fits", yes_no("fits")),
)
"""Columns that steps, encoders and front-ends have in common."""
STEP_COLUMNS: Sequence[Column] = (
    ("config", text("config")),
    ("impl", text("impl")),
    ("batch", count("batch")),
    ("tokens", text("text_tokens")),
    ("dtype", text("dtype")),
    ("remat", text("remat")),
    ("mesh", text("mesh")),
    ("on", _where),
    ("parameters", count("parameters")),
    ("clips/s", number("clips_per_s", 2)),
    *MEASURED,
)
ENCODER_COLUMNS: Sequence[Column] = (
    ("encoder", text("encoder")),
    ("impl", text("impl")),
    ("pass", text("pass")),
    ("batch", count("batch")),
    ("tokens", text("tokens")),
    ("dtype", text("dtype")),
    ("remat", text("remat")),
    ("attention", text("attention")),
    ("on", _where),
    ("parameters", count("parameters")),
    ("examples/s", number("examples_per_s", 2)),
    *MEASURED,
)
FRONTEND_COLUMNS: Sequence[Column] = (
    ("front-end", text("frontend")),
    ("impl", text("impl")),
    ("batch", count("batch")),
    ("clip s", text("clip_sec")),
    ("on", _where),
    ("clips/s", number("clips_per_s", 1)),
    ("audio s/s", count("seconds_per_s")),
    *MEASURED,
)
STAGES = ("index", "read", "decode", "resample", "crop and collate", "tokenise", "transfer")
"""Stages of a clip in the input pipeline, in order."""


def _stage(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row['stages_us'][name]:,.0f}" if name in row.get("stages_us", {}) else ""


INPUT_COLUMNS: Sequence[Column] = (
    ("impl", text("impl")),
    ("encoding", text("encoding")),
    ("stored Hz", count("stored_hz")),
    ("model Hz", count("model_hz")),
    ("seconds", text("source_sec")),
    ("batch", count("batch")),
    ("kB/clip", lambda row: f"{row['bytes_per_clip'] / 1000:,.0f}"),
    ("clips/s", count("clips_per_sec")),
    ("clips/core-s", count("clips_per_core_sec")),
    ("cores needed", number("cores_needed", 2)),
    *((f"{name} us", _stage(name)) for name in STAGES),
)
INDEX_COLUMNS: Sequence[Column] = (
    ("rows", count("index_rows")),
    ("index MB", lambda row: f"{row['index_bytes'] / 1e6:,.0f}"),
    ("kept", count("kept_rows")),
    ("first open s", number("first_open_sec", 2)),
    ("open s", number("open_sec", 2)),
    ("open CPU s", number("open_cpu_sec", 2)),
    ("open MB", number("open_mb", 0)),
    ("of them not mapped", number("open_anonymous_mb", 0)),
    ("resume at 10 s", number("resume_at_10_sec", 2)),
    ("resume at 10,000,000 s", number("resume_at_10000000_sec", 2)),
    ("growth MB", number("growth_mb", 1)),
)
KINDS: dict[str, Sequence[Column]] = {
    "encoding": INPUT_COLUMNS,
    "index_rows": INDEX_COLUMNS,
    "loss": LOSS_COLUMNS,
    "config": STEP_COLUMNS,
    "encoder": ENCODER_COLUMNS,
    "frontend": FRONTEND_COLUMNS,
}
"""Columns by the field that only rows of that benchmark have."""


def columns_of(rows: Sequence[Row]) -> Sequence[Column]:
    """Chooses the columns of some rows by their fields."""
    return next(columns for field, columns in KINDS.items() if field in rows[0])


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Returns titles, and the rows' cells under them; a column in which every row is empty is left out."""
    shown = [(title, [cell(row) for row in rows]) for title, cell in columns_of(rows)]
    shown = [(title, column) for title, column in shown if any(column)]
    return [title for title, _ in shown], [
        [column[index] for _, column in shown] for index in range(len(rows))
    ]


def print_rows(rows: Sequence[Row]) -> None:
    """Prints the rows as a table, and below it the errors."""
    if not rows:
        return
    titles, lines = cells(rows)
    table = Table(box=None, header_style="bold")
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if lines[0][index][:1].isdigit() else "left")
    for line in lines:
        table.add_row(*line)
    console = Console(width=None if Console().is_terminal else 220, highlight=False, markup=False)
    console.print(table)
    for row in rows:
        if row.get("error"):
            console.print(f"{row['impl']}, batch {row['batch']:,}: {row['error']}")
