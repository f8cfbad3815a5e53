"""``alm bench full-size``: configs of published size, compiled for slices that are not here."""

import sys
from collections.abc import Sequence
from pathlib import Path

from alm_jax.bench.full_size import run_cases, write_table
from alm_jax.cli.arguments import Parser
from alm_jax.cli.bench.options import names


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser(
        "bench full-size",
        "Compile configs of published size for slices that are not here, unless their rows are on disk; print all.",
    )
    parser.add_argument("--configs", type=Path, default=Path("configs"), help="folder of the configs")
    parser.add_argument(
        "--rows", type=Path, default=Path("docs/performance/full_size"), help="folder of the rows on disk"
    )
    parser.add_argument(
        "--only", type=names, default=[], help="run only cases with these parts in their names: ltu_7b,v5p"
    )
    parser.add_argument("--no-compile", action="store_true", help="only print the table of the existing rows")
    own = parser.parse_args(args)
    for line in () if own.no_compile else run_cases(own.configs, own.rows, only=own.only):
        print(line, file=sys.stderr, flush=True)
    print(write_table(own.rows), end="")
