"""``alm bench encoder``: an encoder alone, forward or with the gradients of its parameters."""

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from alm_jax.bench import encoder
from alm_jax.bench.start import prepare_jax
from alm_jax.cli.arguments import Parser
from alm_jax.cli.bench.options import add_common, names, numbers, report
from alm_jax.nn.rematerialise import Remat


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser(
        "bench encoder", "Measure an encoder alone, forward or with the gradients of its parameters."
    )
    parser.add_argument(
        "--encoder", type=names, default=["htsat/tiny"], help=f"family/variant: {', '.join(encoder.names())}"
    )
    parser.add_argument(
        "--pass",
        dest="directions",
        type=names,
        default=["backward"],
        help="passes: forward, backward (forward and gradients)",
    )
    parser.add_argument("--batch", type=numbers, default=[4], help="batch sizes: clips or captions")
    parser.add_argument("--tokens", type=int, default=77, help="tokens of a caption")
    parser.add_argument("--dtype", type=names, default=["float32"], help="dtypes: float32, bfloat16")
    parser.add_argument(
        "--remat", choices=get_args(Remat), default="none", help="what the backward pass recomputes"
    )
    parser.add_argument(
        "--attention",
        type=names,
        default=["auto"],
        help=f"implementation of attention: {', '.join(encoder.ATTENTION)}",
    )
    parser.add_argument(
        "--peer", type=names, default=[], help=f"peers of the same shape: {', '.join(encoder.PEERS)}"
    )
    add_common(parser)
    own = parser.parse_args(args)
    topology = prepare_jax(own.topology, 1, with_peers=bool(own.peer))
    cases = [
        encoder.EncoderCase(
            name=name,
            batch=batch,
            tokens=own.tokens,
            dtype=dtype,
            direction=direction,
            remat=own.remat,
            attention=attention,
        )
        for name in own.encoder
        for direction in own.directions
        for dtype in own.dtype
        for batch in own.batch
        for attention in own.attention
    ]

    def rows() -> Iterator[dict[str, Any]]:
        for case in cases:
            if topology is None:
                yield from encoder.run_rows(case, own.peer, repeats=own.repeats)
            else:
                yield encoder.compile_row(case, topology)

    report(rows(), own.json, ["encoder", *args])
