"""``alm evaluate RUN [--split S] [--json FILE|-] [--out DIR]``: measure a trained model."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from alm_jax.cli.arguments import Parser
from alm_jax.run.evaluate import Record, evaluate_run


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser("evaluate", "Measure the newest checkpoint of a run by the evaluators of its config.")
    parser.add_argument("workdir", type=Path, help="the folder of an `alm pretrain` run")
    parser.add_argument("--split", help="the split(s) to measure, by default the config's data.eval_split")
    parser.add_argument(
        "--json", help="also write the figures as one flat JSON object to this file, or - for stdout"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="the folder for evaluation.json and report.html; by default the run's own, of its own split",
    )
    own = parser.parse_args(args)
    record = evaluate_run(own.workdir, split=own.split, out=own.out)
    text = json.dumps(record, indent=2)
    if own.json == "-":
        print(text)
    else:
        print_table(record)
        if own.json:
            Path(own.json).write_text(text + "\n")


def print_table(record: Record) -> None:
    """The figures for a person."""
    table = Table(show_header=False, box=None)
    for name, value in record.items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    Console(file=sys.stdout).print(table)
