"""``alm zoo``: list every model; ``alm zoo --parity``: compare each with its reference implementation."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from alm_jax.cli.arguments import Parser
from alm_jax.errors import AlmError, UserError
from alm_jax.interop.catalogue_table import compare_all, list_zoo, versions, write_parity_page


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser(
        "zoo", "List every encoder and language model, or compare each with its reference implementation."
    )
    parser.add_argument(
        "--parity", action="store_true", help="compare each model with its reference ([torch] extra)"
    )
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
