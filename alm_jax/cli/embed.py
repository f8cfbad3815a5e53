"""``alm embed MODEL PATH ... --out FILE.npz|FILE.parquet``: the embeddings of recordings, in one file."""

from collections.abc import Sequence
from pathlib import Path

from alm_jax.cli.arguments import Parser
from alm_jax.run.embed import embed_files


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser("embed", "Embed recordings with two towers, into one file.")
    parser.add_argument(
        "model",
        help="a run folder, a folder of `alm import`, `alm export` or transformers, or an id of the Hub",
    )
    parser.add_argument("paths", type=Path, nargs="+", help="recordings, and folders of them")
    parser.add_argument("--out", type=Path, required=True, help="the .npz or .parquet file to write")
    parser.add_argument("--batch-size", type=int, default=32, help="clips computed at once (default: 32)")
    parser.add_argument("--threads", type=int, default=4, help="threads that decode (default: 4)")
    own = parser.parse_args(args)
    count, width = embed_files(own.model, own.paths, own.out, own.batch_size, own.threads)
    print(f"{own.out}: {count} embeddings of {width} dimensions")
