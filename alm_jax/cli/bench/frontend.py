"""``alm bench frontend``: waveforms to features."""

from collections.abc import Iterator, Sequence
from typing import Any

from alm_jax.bench import frontend
from alm_jax.bench.start import prepare_jax
from alm_jax.cli.arguments import Parser
from alm_jax.cli.bench.options import add_common, names, numbers, report


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser("bench frontend", "Measure front-ends, from waveforms to features.")
    parser.add_argument(
        "--frontend", type=names, default=["torchlibrosa"], help=f"families: {', '.join(frontend.SPECS)}"
    )
    parser.add_argument("--batch", type=numbers, default=[16], help="batch sizes, clips")
    parser.add_argument("--clip-sec", type=float, default=10.0, help="length of a clip, seconds")
    parser.add_argument(
        "--peer", type=names, default=[], help="transformers: its feature extractor, where there is one"
    )
    add_common(parser)
    own = parser.parse_args(args)
    topology = prepare_jax(own.topology, 1, with_peers=bool(own.peer))

    def rows() -> Iterator[dict[str, Any]]:
        for name in own.frontend:
            for batch in own.batch:
                case = frontend.FrontendCase(name=name, batch=batch, clip_sec=own.clip_sec)
                if topology is None:
                    yield from frontend.run_rows(case, own.peer, repeats=own.repeats)
                else:
                    yield frontend.compile_row(case, topology)

    report(rows(), own.json, ["frontend", *args])
