"""``alm evaluate WORKDIR [--split S] [--json FILE|-]``: measure a trained model."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from alm_jax.cli.arguments import Parser
from alm_jax.cli.evaluations import evaluation_of
from alm_jax.run.session import enable_compilation_cache, restore_run
from alm_jax.run.workdir import EVALUATION


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser("evaluate", "Measure the newest checkpoint of a run as its objective is measured.")
    parser.add_argument("workdir", type=Path, help="the folder of an `alm pretrain` run")
    parser.add_argument("--split", help="the split(s) to measure, by default the config's data.eval_split")
    parser.add_argument(
        "--json", help="also write the figures as one flat JSON object to this file, or - for stdout"
    )
    own = parser.parse_args(args)
    metrics = evaluate_run(own.workdir, split=own.split)
    text = json.dumps(metrics, indent=2)
    if own.json == "-":
        print(text)
    else:
        print_table(metrics)
        if own.json:
            Path(own.json).write_text(text + "\n")


def evaluate_run(workdir: Path, *, split: str | None = None) -> dict[str, float | int | str]:
    """The figures of a run's newest checkpoint on a split; also written to ``WORKDIR/evaluation.json``."""
    enable_compilation_cache()
    session, state = restore_run(workdir)
    name = split or session.config.data.eval_split
    result = evaluation_of(session.config.objective).evaluate(session, state, name)
    metrics: dict[str, float | int | str] = {"split": name, "step": int(state.step), **result.metrics}
    if split is None:
        (workdir / EVALUATION).write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def print_table(metrics: dict[str, float | int | str]) -> None:
    """The figures for a person."""
    table = Table(show_header=False, box=None)
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    Console(file=sys.stdout).print(table)
