"""What the benchmarks' commands share: lists as options, and where the rows go."""

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from alm_jax.bench.record import Recorder
from alm_jax.bench.table import print_rows
from alm_jax.cli.arguments import Parser


def names(text: str) -> list[str]:
    """``a,b,c``."""
    return [part for part in text.split(",") if part]


def numbers(text: str) -> list[int]:
    """``1,2,3``, with or without underscores; ``1k`` is 1,024 and ``1m`` its square."""
    units = {"k": 1024, "m": 1024**2}

    def number(part: str) -> int:
        unit = units.get(part[-1:].lower(), 1)
        return int(part[:-1] if unit > 1 else part) * unit

    try:
        return [number(part) for part in names(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 4096,16k") from error


def reals(text: str) -> list[float]:
    """``1,2.5``."""
    try:
        return [float(part) for part in names(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 2.5,10") from error


def add_output(parser: Parser) -> None:
    """The option for rows on disk."""
    parser.add_argument("--json", help="write the rows to this file; -: print only the rows, as JSON")


def add_repeats(parser: Parser) -> None:
    """The options of a benchmark that is timed."""
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each (default: 5)")
    add_output(parser)


def add_common(parser: Parser) -> None:
    """The options of a benchmark that runs or is compiled for devices that are not here."""
    parser.add_argument(
        "--topology",
        help="compile for absent devices, such as v5e:16x16 or h100:8, and run nothing",
    )
    add_repeats(parser)


def report(rows: Iterable[dict[str, Any]], target: str | None, args: Sequence[str]) -> list[dict[str, Any]]:
    """Takes the rows as they come, writes them to ``target``, and shows them to a person where one looks on."""
    path = Path(target) if target not in (None, "-") else None
    recorder = Recorder(path, shlex.join(["alm", "bench", *args]))
    for row in rows:
        recorder.add(row)
    if target == "-":
        print(json.dumps(recorder.rows, indent=2))
    elif target is None or sys.stdout.isatty():
        print_rows(recorder.rows)
    return recorder.rows
