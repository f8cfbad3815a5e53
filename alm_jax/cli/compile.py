"""``alm compile CONFIG --topology v5e:16x16``: estimate the memory and time of a training on absent devices."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from alm_jax.bench.compiled_step import compile_step, search_batch, show
from alm_jax.bench.start import prepare_jax
from alm_jax.bench.table import print_rows
from alm_jax.bench.topology import read_name
from alm_jax.cli.arguments import Parser, read_config
from alm_jax.errors import UserError

WIDTH = 120
"""Columns of the tables, whatever the terminal: paths are long."""


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser(
        "compile", "Lay out a training on devices that are not here, and compile its step for them."
    )
    parser.add_argument("config", help="a file with get_config(), such as configs/demo.py")
    parser.add_argument(
        "--topology", required=True, help="devices to compile for: v5e:16x16, v5p:4x4x4, h100:8, ..."
    )
    parser.add_argument(
        "--no-compile",
        action="store_true",
        help="only count memory from shapes and shardings: takes seconds and needs no compiler",
    )
    parser.add_argument("--by-module", action="store_true", help="also list cycles and bytes by module")
    parser.add_argument(
        "--search-batch",
        action="store_true",
        help="compile several batch sizes to find the largest that fits",
    )
    parser.add_argument(
        "--json", help="also write the result as one JSON object to this file; -: print only the JSON"
    )
    parser.epilog = "Fields of the config are options, as in `alm pretrain CONFIG --help`."
    own, overrides = parser.parse_known_args(args)
    if own.no_compile and (own.by_module or own.search_batch):
        raise UserError("--by-module and --search-batch read the compiled step: leave --no-compile out")
    read_name(own.topology)
    topology = prepare_jax(None if own.no_compile else own.topology, 1, with_peers=False)
    config = read_config(own.config, overrides, prog=f"alm compile {own.config}")
    if own.search_batch:
        assert topology is not None
        rows = search_batch(config, topology)
        found = json.dumps({"rows": rows}, indent=2)
        if own.json != "-":
            print_rows(rows)
    else:
        step = compile_step(config, own.topology, topology, with_modules=own.by_module)
        found = json.dumps(step.to_json(), indent=2)
        if own.json != "-":
            show(step, Console(file=sys.stdout, highlight=False, markup=False, width=WIDTH))
    if own.json == "-":
        print(found)
    elif own.json:
        Path(own.json).write_text(found + "\n")
