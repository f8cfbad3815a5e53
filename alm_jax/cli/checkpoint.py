"""``alm checkpoint list|verify|diff|copy|prune``: the checkpoints of a run, looked at and looked after."""

import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from alm_jax.cli.arguments import Parser
from alm_jax.errors import DataError, UserError
from alm_jax.run import checkpoints

MAX_LINES = 40
"""Arrays that a comparison shows."""


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser("checkpoint", "Look at the checkpoints of a run, and look after them.")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_Subparser
    )
    found = commands.add_parser("list", help="steps, sizes, times and validation losses")
    found.add_argument("run", type=Path, help="a run folder")
    found = commands.add_parser("verify", help="read every byte, and compare it with what was written")
    found.add_argument("run", type=Path, help="a run folder")
    found.add_argument(
        "--step", type=int, action="append", help="this step alone; may be given several times"
    )
    found = commands.add_parser("diff", help="how two checkpoints differ")
    found.add_argument("first", help="RUN@STEP, or RUN for its newest")
    found.add_argument("second", help="RUN@STEP, or RUN for its newest")
    found = commands.add_parser("copy", help="one checkpoint as a run folder of its own")
    found.add_argument("source", help="RUN@STEP, or RUN for its newest")
    found.add_argument("out", type=Path, help="the folder to make")
    found = commands.add_parser("prune", help="delete old checkpoints of a run that is not in use")
    found.add_argument("run", type=Path, help="a run folder")
    found.add_argument("--keep", type=int, default=1, help="newest whole checkpoints that stay (default: 1)")
    found.add_argument("--keep-step", type=int, action="append", default=[], help="another step that stays")
    own = parser.parse_args(args)
    console = Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)
    match own.command:
        case "list":
            console.print(table_of(checkpoints.list_checkpoints(own.run)))
        case "verify":
            problems = checkpoints.verify(own.run, own.step)
            if problems:
                raise DataError("\n".join(problems))
            console.print(f"{own.run}: every file and array is as it was written")
        case "diff":
            config, arrays = checkpoints.difference(own.first, own.second)
            more = [f"... and {len(arrays) - MAX_LINES} more arrays"] if len(arrays) > MAX_LINES else []
            for line in [*config, *arrays[:MAX_LINES], *more] or ["no difference"]:
                console.print(line)
        case "copy":
            step = checkpoints.copy(own.source, own.out)
            console.print(f"wrote {own.out}: step {step} of {own.source}")
        case "prune":
            if own.keep < 1:
                raise UserError(f"--keep is {own.keep}; at least one checkpoint stays")
            doomed = checkpoints.prune(own.run, keep=own.keep, kept_steps=own.keep_step)
            console.print(f"deleted {doomed}" if doomed else "nothing to delete")


class _Subparser(Parser):
    def __init__(self, **options: str):
        prog = options.pop("prog")
        super().__init__(prog.removeprefix("alm "), options.pop("help", ""))


def table_of(entries: list[checkpoints.Entry]) -> Table:
    """The checkpoints for a person."""
    table = Table("step", "MB", "written", "alm_jax", "validation loss", box=None)
    for entry in entries:
        time = datetime.datetime.fromtimestamp(entry.written).isoformat(" ", "seconds")
        loss = "" if entry.loss is None else f"{entry.loss:.4f}"
        table.add_row(str(entry.step), f"{entry.size_bytes / 1e6:.1f}", time, entry.version, loss)
    return table
