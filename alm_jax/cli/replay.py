"""``alm replay RUN STEP``: one training step of a run again, and what every module did in it."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from alm_jax.cli.arguments import Parser
from alm_jax.run.replay import COMPARED, Replay, replay


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser("replay", "Make one training step of a run again, from its record.")
    parser.add_argument(
        "run", type=Path, help="a run folder with a checkpoint before the step, or an early step"
    )
    parser.add_argument("step", type=int, help="the step, from 1")
    own = parser.parse_args(args)
    show(replay(own.run, own.step), own.step)


def show(found: Replay, step: int) -> None:
    """Prints a replay for a person."""
    console = Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)
    console.print(f"step {step}, after the state of step {found.start_step}; examples {found.examples}")
    if not found.recorded:
        console.print("metrics.jsonl has no record of this step")
    elif found.differences:
        for line in found.differences:
            console.print(line)
    else:
        console.print("equal to the record, to the last bit: " + ", ".join(COMPARED))
    table = Table("module", "norm of parameters", "norm of gradients", box=None)
    for name, (parameters, gradients) in found.norms.items():
        table.add_row(name, f"{parameters:.6g}", f"{gradients:.6g}")
    console.print(table)
