"""``alm bench input``: the input pipeline of a config's data set alone, a row a candidate and a case."""

from collections.abc import Sequence

from alm_jax.bench.input import run_rows
from alm_jax.cli.arguments import Parser, read_config
from alm_jax.cli.bench.options import add_repeats, names, numbers, reals, report


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser(
        "bench input", "The input pipeline of a config's data set alone, a row a candidate and a case."
    )
    parser.add_argument("config", help="a file with get_config(), such as configs/demo.py")
    parser.add_argument(
        "--peer", type=names, default=[], help="peers that read the same records: dataloader, grain"
    )
    parser.add_argument("--encoding", type=names, default=["pcm"], help="encodings of the records: pcm, flac")
    parser.add_argument("--rate", type=numbers, default=[16_000], help="sampling rates of the records, Hz")
    parser.add_argument("--seconds", type=reals, default=[5.0], help="lengths of a clip, seconds: 2.5,10")
    parser.add_argument("--batches", type=int, default=20, help="batches of a timed run")
    parser.add_argument(
        "--step-ms", type=float, help="time of a training step, to compute how many cores can feed it"
    )
    parser.epilog = "Fields of the config are options, as in `alm pretrain CONFIG --help`."
    add_repeats(parser)
    own, overrides = parser.parse_known_args(args)
    config = read_config(own.config, overrides, prog=f"alm bench input {own.config}")
    rows = run_rows(
        config,
        own.peer,
        encodings=own.encoding,
        rates_hz=own.rate,
        source_secs=own.seconds,
        repeats=own.repeats,
        num_batches=own.batches,
        step_ms=own.step_ms,
    )
    report(rows, own.json, ["input", *args])
