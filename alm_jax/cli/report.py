"""``alm report RUN [--out DIR]``: draw the report of a run, finished or stopped, from its newest checkpoint."""

from collections.abc import Sequence
from pathlib import Path

from alm_jax.cli.arguments import Parser
from alm_jax.evaluation.report.page import REPORT_FILE
from alm_jax.run.evaluate import evaluate_run


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser(
        "report",
        "Evaluate the newest checkpoint of a run and draw its figures, curves and examples on one page.",
    )
    parser.add_argument("workdir", type=Path, help="the folder of an `alm pretrain` run, finished or stopped")
    parser.add_argument("--split", help="the split(s) to measure, by default the config's data.eval_split")
    parser.add_argument("--out", type=Path, help="the folder for the page; by default the run's own")
    own = parser.parse_args(args)
    out = own.out or own.workdir
    evaluate_run(own.workdir, split=own.split, out=out)
    print(out / REPORT_FILE)
