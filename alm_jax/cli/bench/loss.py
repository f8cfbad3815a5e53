"""``alm bench loss``: forward and backward of the forms of a loss, one row each; lists sweep."""

from collections.abc import Sequence
from pathlib import Path

from alm_jax.bench.loss import LossSweep, run_sweep
from alm_jax.bench.pictures import write_pictures
from alm_jax.bench.start import prepare_jax
from alm_jax.cli.arguments import Parser
from alm_jax.cli.bench.options import add_common, names, numbers, report


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser("bench loss", "Forward and backward of the forms of a loss, one row each; lists sweep.")
    parser.add_argument(
        "--loss", type=names, default=["infonce"], help="infonce, sigmoid, multi_positive, hard_negatives, lm"
    )
    parser.add_argument(
        "--impl", type=names, help="forms of the loss (default: all that make sense for the devices)"
    )
    parser.add_argument(
        "--batch", type=numbers, default=[1024], help="batch sizes, pairs (tokens for lm): 4096,16k,1m"
    )
    parser.add_argument("--dim", type=int, default=512, help="width of the embeddings")
    parser.add_argument("--dtype", type=names, default=["float32"], help="dtypes: float32, bfloat16")
    parser.add_argument("--vocab", type=int, default=32768, help="vocabulary size, for lm")
    parser.add_argument("--devices", type=int, default=1, help="number of devices; simulated on a CPU")
    parser.add_argument(
        "--peer",
        type=names,
        default=[],
        help="peers: open_clip, transformers, pytorch (lm), each also with +compile",
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the pictures of a sweep (default: that of --json)"
    )
    add_common(parser)
    own = parser.parse_args(args)
    topology = prepare_jax(own.topology, own.devices, with_peers=bool(own.peer))

    sweep = LossSweep(
        losses=own.loss,
        impls=own.impl,
        batches=own.batch,
        dim=own.dim,
        dtypes=own.dtype,
        vocab=own.vocab,
        peers=own.peer,
        num_devices=own.devices,
        topology=topology,
        repeats=own.repeats,
    )
    rows = report(run_sweep(sweep), own.json, ["loss", *args])
    path = None if own.json in (None, "-") else Path(own.json)
    folder = own.out or (None if path is None else path.parent)
    if folder is not None:
        write_pictures(rows, folder, "loss" if path is None else path.stem)
