"""``alm evaluate MODEL [--suite NAME ...]``: measure a run by its own evaluators, or any model by suites."""

import json
from collections.abc import Sequence
from pathlib import Path

from alm_jax.cli.arguments import Parser
from alm_jax.errors import UserError
from alm_jax.evaluation.suites import SUITES
from alm_jax.run.evaluate import Record, evaluate_run
from alm_jax.run.evaluate_model import evaluate_model


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser(
        "evaluate",
        "Measure the newest checkpoint of a run by its config's evaluators, or any model by suites.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        help="the folder of an `alm pretrain` run; with --suite also RUN@STEP, a folder of `alm import`, `alm export` "
        "or transformers, an archive, or an id of the Hub",
    )
    parser.add_argument("--list", action="store_true", help="print the suites and what they measure")
    parser.add_argument(
        "--suite", action="append", help="a suite of evaluators (see --list); may be repeated"
    )
    parser.add_argument("--data", help="the folder of the suites' data set")
    parser.add_argument(
        "--template", action="append", help="a prompt of a class with {}; several are averaged"
    )
    parser.add_argument("--split", help="the split(s) to measure, by default the config's or the suite's")
    parser.add_argument(
        "--json", help="also write the figures as one flat JSON object to this file, or - for stdout"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="the folder for evaluation.json and report.html; by default the run's own, of its own split",
    )
    own = parser.parse_args(args)
    if own.list:
        print("\n".join(f"{name:12} {suite.about}" for name, suite in SUITES.items()))
        return
    if own.model is None:
        raise UserError(f"which model is to be measured?\n{parser.format_usage().rstrip()}")
    if own.suite:
        if own.data is None:
            raise UserError("--suite needs --data, the folder of its data set")
        record = evaluate_model(
            own.model,
            list(dict.fromkeys(own.suite)),
            data=own.data,
            split=own.split,
            templates=own.template or (),
            out=own.out,
        )
    elif own.data or own.template:
        raise UserError("--data and --template belong to a suite; name one by --suite (alm evaluate --list)")
    else:
        record = evaluate_run(Path(own.model), split=own.split, out=own.out)
    text = json.dumps(record, indent=2)
    if own.json == "-":
        print(text)
    else:
        print_table(record)
        if own.json:
            Path(own.json).write_text(text + "\n")


def print_table(record: Record) -> None:
    """The figures for a person, one a line; nothing is cut to the width of a terminal."""
    width = max(map(len, record))
    for name, value in record.items():
        print(f"{name:{width}}  {value:.4f}" if isinstance(value, float) else f"{name:{width}}  {value}")
