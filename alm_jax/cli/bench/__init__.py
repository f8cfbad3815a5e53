"""``alm bench WHAT``: measure speed and memory beside peers, or compile for absent devices; one file a benchmark."""

import importlib
from collections.abc import Sequence

from alm_jax.errors import UserError

USAGE = """usage: alm bench WHAT ...

  loss       forward and backward of every form of a loss
  step       the whole training step of a config
  encoder    an encoder alone, forward or with its gradients
  frontend   waveforms to features
  input      the input pipeline alone, stage by stage
  index      opening, filtering, mixing and resuming a data set of any length
  full-size  the configs of published size on absent slices: docs/performance/full_size.md
  report     docs/benchmarks.md from the rows in docs/benchmarks/

`alm bench WHAT --help` describes a benchmark and its options."""


def run(args: Sequence[str]) -> None:
    """The command."""
    if args and args[0] in ("-h", "--help"):
        print(USAGE)
        return
    kinds = [line.split()[0] for line in USAGE.split("\n\n")[1].splitlines()]
    if not args or args[0] not in kinds:
        found = f"there is nothing called {args[0]!r} to measure" if args else "nothing to measure was named"
        raise UserError(f"{found}\n{USAGE}")
    importlib.import_module(f"alm_jax.cli.bench.{args[0].replace('-', '_')}").run(args[1:])
