"""``alm data CONFIG [--a.b value ...]``: build a config's data set ahead of time, and show what is in it."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from alm_jax.cli.arguments import Parser, read_config
from alm_jax.errors import UserError
from data_pipelines.prepare import prepare
from data_pipelines.prepared import Prepared


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser("data", "Build the data set of a config, or find it built, and show what is in it.")
    parser.add_argument(
        "config", help="a file with get_config(); its fields are options, as in `alm pretrain`"
    )
    if not args or args[0] in ("-h", "--help"):
        parser.print_help(sys.stdout if args else sys.stderr)
        if args:
            return
        raise UserError("no config file was given")
    config = read_config(args[0], args[1:], prog=f"alm data {args[0]}")
    show(prepare(config.data, config.objective.model.frontend.sample_rate_hz))


def show(data: Prepared) -> None:
    """Splits, hours and captions, and where the records lie."""
    console = Console(file=sys.stdout, highlight=False, markup=False)
    table = Table("split", "clips", "hours", "captions", "an example", box=None)
    for name, split in data.splits.items():
        table.add_row(
            name,
            f"{len(split):,}",
            f"{split.seconds / 3600:.3f}",
            f"{split.num_captions:,}",
            split.captions(0)[0],
        )
    console.print(table)
    console.print(
        f"classes: {len(data.class_names)}; tokens: {data.tokenizer.get_vocab_size()}", soft_wrap=True
    )
    console.print(f"rejected recordings: {data.num_rejected}", soft_wrap=True)
    for folder in data.folders:
        console.print(f"records: {folder}", soft_wrap=True)
    console.print(f"fingerprint: {data.fingerprint}", soft_wrap=True)
