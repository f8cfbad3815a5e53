"""``alm bench step``: the whole training step of a config, optimizer included."""

from collections.abc import Sequence

from alm_jax.bench import step
from alm_jax.bench.compiled_step import compile_row
from alm_jax.bench.start import prepare_jax
from alm_jax.cli.arguments import Parser, read_config
from alm_jax.cli.bench.options import add_common, names, report
from alm_jax.errors import UserError


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser("bench step", "Measure the whole training step of a config, optimizer included.")
    parser.add_argument("config", help="a file with get_config(), such as configs/demo.py")
    parser.add_argument(
        "--peer", type=names, default=[], help=f"peers on the same batch: {', '.join(step.PEERS)}"
    )
    parser.epilog = "Fields of the config are options, as in `alm pretrain CONFIG --help`."
    add_common(parser)
    own, overrides = parser.parse_known_args(args)
    topology = prepare_jax(own.topology, 1, with_peers=bool(own.peer))
    config = read_config(own.config, overrides, prog=f"alm bench step {own.config}")
    if topology is None:
        rows = step.run_rows(config, own.peer, repeats=own.repeats)
    elif own.peer:
        raise UserError("a peer runs in PyTorch on a device that is here, and a topology is not")
    else:
        rows = [compile_row(config, topology)[0]]
    report(rows, own.json, ["step", *args])
