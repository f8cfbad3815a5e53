"""``alm bench report``: the page of benchmarks, from the rows that were written with --json."""

from collections.abc import Sequence
from pathlib import Path

from alm_jax.bench.report import write_page
from alm_jax.cli.arguments import Parser


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser(
        "bench report", "Write the page of benchmarks from the rows that were written with --json."
    )
    parser.add_argument("--folder", type=Path, default=Path("docs/benchmarks"), help="folder of the rows")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.md"), help="the page to write")
    own = parser.parse_args(args)
    own.out.write_text(write_page(own.folder, relative_to=own.out.parent))
