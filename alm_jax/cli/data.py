"""``alm data check|build|show|list``: what a data set would be, building it, looking at it, and which there are."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from alm_jax.cli.arguments import Parser, read_config
from alm_jax.errors import DataError, UserError
from data_pipelines.build_progress import Progress
from data_pipelines.dataset import DatasetConfig
from data_pipelines.prepared import Prepared

USAGE = """usage: alm data COMMAND ...

  check PATH     every recording decoded once, and what was found: a table, a folder, tars, or a config file
  build CONFIG   build the data set of a config, or find it built
  show CONFIG    build it, and write a page of its clips with players, spectrograms and histograms
  list           the data sets that there are

Options of check: fields of the data set, as `alm data check PATH --help` lists them. Options of build and show: fields
of the config, as in `alm pretrain`; build has --beam OPTIONS too, to build on Apache Beam, such as
--beam "--runner=DirectRunner", and show --out FILE.html and --clips N."""


def run(args: Sequence[str]) -> None:
    """The command."""
    commands = {"check": check, "build": build, "show": show, "list": list_datasets}
    if args and args[0] in ("-h", "--help"):
        print(USAGE)
        return
    if not args or args[0] not in commands:
        message = f"there is no `alm data {args[0]}`" if args else "nothing to do was named"
        is_config = bool(args) and args[0].endswith(".py")
        hint = f"; `alm data build {args[0]}` builds a config's data set" if is_config else ""
        raise UserError(f"{message}{hint}\n{USAGE}")
    commands[args[0]](args[1:])


def check(args: Sequence[str]) -> None:
    """Decodes everything once and prints what was found; DataError where something would be left out."""
    from data_pipelines.check import check as measure

    problems: list[str] = []
    dataset = read_dataset(args)
    source = dataset.read(problems)
    with Progress("checking", len(source.rows)) as progress:
        report = measure(source, problems, advance=progress.advance)
    for line in report.found:
        print(f"{'found':<12}{line}")
    for name, value in report.lines():
        print(f"{name:<12}{value}")
    for problem in report.problems:
        print(f"{'problem':<12}{problem}")
    if report.num_problems:
        raise DataError(
            f"{report.num_problems:,} of {report.num_rows + report.num_bad_rows:,} rows cannot be used; a build leaves "
            "them out, and stops where they are more than data.max_bad_fraction"
        )


def read_dataset(args: Sequence[str]) -> DatasetConfig:
    """The data set of a config file, or the recordings at a path, with the fields that options name."""
    import tyro

    from data_pipelines.datasets.recordings import RecordingsConfig

    if not args:
        raise UserError("nothing to check was named; expected a table, a folder, tars, or a config file")
    if args[0].endswith(".py"):
        dataset = read_config(args[0], args[1:], prog=f"alm data check {args[0]}").data.dataset
        if not isinstance(dataset, DatasetConfig):
            raise UserError(f"{args[0]} mixes several data sets; check each by its own config or path")
        return dataset
    path = "PATH" if args[0] in ("-h", "--help") else args[0]
    try:
        return tyro.cli(
            RecordingsConfig,
            prog=f"alm data check {path}",
            default=RecordingsConfig(path=path),
            args=list(args if path == "PATH" else args[1:]),
        )
    except SystemExit as exit:
        if exit.code:
            raise UserError("nothing was checked; see the message above") from exit
        raise


def build(args: Sequence[str]) -> None:
    """Builds a config's data set, and shows its splits, hours and captions, and where the records lie."""
    parser = Parser("data build", "Build a config's data set.")
    parser.add_argument("--beam", help="options of the Apache Beam pipeline that builds; default: threads")
    words = list(args)
    if "--beam" in words[:-1]:  # argparse would take a value that begins with a dash for another option
        place = words.index("--beam")
        words[place : place + 2] = [f"--beam={words[place + 1]}"]
    own, rest = _parse_own(parser, words)
    data, _ = _prepare("build", rest, beam=own.beam)
    console = Console(file=sys.stdout, highlight=False, markup=False)
    table = Table("split", "clips", "hours", "captions", "an example", box=None)
    for name, split in data.splits.items():
        counts = f"{len(split):,}", f"{split.seconds / 3600:.3f}", f"{split.num_captions:,}"
        table.add_row(name, *counts, split.captions(0)[0])
    console.print(table)
    num_tokens = data.tokenizer.get_vocab_size()
    console.print(f"classes: {len(data.class_names)}; tokens: {num_tokens}", soft_wrap=True)
    console.print(f"rejected recordings: {data.num_rejected}", soft_wrap=True)
    for folder in data.folders:
        console.print(f"records: {folder}", soft_wrap=True)
    console.print(f"fingerprint: {data.fingerprint}", soft_wrap=True)


def show(args: Sequence[str]) -> None:
    """Writes the page."""
    from data_pipelines.page import write_page
    from data_pipelines.statistics import measure

    parser = Parser("data show", "Write a page of a data set's clips.")
    parser.add_argument("--out", type=Path, default=Path("data.html"), help="the page; data.html")
    parser.add_argument("--clips", type=int, default=12, help="clips of each split to listen to; 12")
    own, rest = _parse_own(parser, args)
    data, title = _prepare("show", rest)
    write_page(own.out, data, title, {name: measure(data, name, num_clips=own.clips) for name in data.splits})
    print(f"page: {own.out}")


def _parse_own(parser: Parser, args: Sequence[str]) -> tuple[Namespace, list[str]]:
    """A command's own options, and the others, which are the config's; so is the help."""
    return parser.parse_known_args(args) if "--help" not in args else (parser.parse_args([]), list(args))


def _prepare(command: str, args: Sequence[str], *, beam: str | None = None) -> tuple[Prepared, str]:
    """The data set of a config file, built, and the config's name."""
    from data_pipelines.prepare import prepare

    if not args or not args[0].endswith(".py"):
        raise UserError(f"name a config file: alm data {command} configs/clap.py --data.dataset.path my.csv")
    config = read_config(args[0], args[1:], prog=f"alm data {command} {args[0]}")
    return prepare(config.data, config.objective.model.frontend.sample_rate_hz, beam=beam), config.name


def list_datasets(args: Sequence[str]) -> None:
    """Every data set there is, in a line."""
    for kind in sorted(DatasetConfig.kinds(), key=lambda kind: kind.__name__):
        print(f"{kind.__name__:<26}{(kind.__doc__ or '').strip().splitlines()[0]}")
