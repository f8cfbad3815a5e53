"""``alm bench index``: what an index of so many rows costs, with a filter and in a mixture."""

from collections.abc import Sequence
from pathlib import Path

from alm_jax.bench.index import run_rows
from alm_jax.cli.arguments import Parser
from alm_jax.cli.bench.options import add_output, numbers, report


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser(
        "bench index", "Measure the cost of an index of many rows, with a filter and in a mixture."
    )
    parser.add_argument(
        "--rows", type=numbers, default=[1_000_000], help="numbers of rows: 1_000_000,400_000_000"
    )
    parser.add_argument("--folder", type=Path, help="folder for temporary files, 120 bytes a row")
    add_output(parser)
    own = parser.parse_args(args)
    report(run_rows(own.rows, own.folder), own.json, ["index", *args])
