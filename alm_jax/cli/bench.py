"""``alm bench WHAT``: speed and memory beside peers, and for devices that are not here.

What JAX reads when it starts its devices, the platform and the number of simulated ones, is set here, before anything
asks for a device.
"""

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import jax

from alm_jax.bench import encoder, frontend, step
from alm_jax.bench.compiled_step import compile_row
from alm_jax.bench.full_size import run_cases, write_table
from alm_jax.bench.loss import LossSweep, run_sweep
from alm_jax.bench.pictures import draw_memory, draw_throughput
from alm_jax.bench.record import Recorder
from alm_jax.bench.report import write_page
from alm_jax.bench.table import print_rows
from alm_jax.bench.topology import Topology, resolve
from alm_jax.cli.arguments import Parser, read_config
from alm_jax.errors import UserError
from alm_jax.nn.rematerialise import Remat

USAGE = """usage: alm bench WHAT ...

  loss       forward and backward of every form of a loss
  step       the whole training step of a config
  encoder    an encoder alone, forward or with its gradients
  frontend   waveforms to features
  input      the input pipeline alone, stage by stage
  index      opening, filtering, mixing and resuming a data set of any length
  full-size  the configs of published size on slices that are not here: docs/performance/full_size.md
  report     docs/benchmarks.md from the rows in docs/benchmarks/

  alm bench WHAT --help says more of each."""


def run(args: Sequence[str]) -> None:
    """The command."""
    kinds: dict[str, Callable[[Sequence[str]], None]] = {
        "loss": bench_loss,
        "step": bench_step,
        "encoder": bench_encoder,
        "frontend": bench_frontend,
        "input": bench_input,
        "index": bench_index,
        "full-size": bench_full_size,
        "report": bench_report,
    }
    if args and args[0] in ("-h", "--help"):
        print(USAGE)
        return
    if not args or args[0] not in kinds:
        found = f"there is nothing called {args[0]!r} to measure" if args else "nothing to measure was named"
        raise UserError(f"{found}\n{USAGE}")
    kinds[args[0]](args[1:])


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


def add_common(parser: Parser) -> None:
    """The options of every benchmark."""
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each; 5 by default")
    parser.add_argument(
        "--topology",
        help="compile for devices that are not here, v5e:16x16 or h100:8, and run nothing",
    )
    parser.add_argument("--json", help="write the rows to this file, or to stdout with -, and then only them")


def prepare_jax(topology: str | None, num_devices: int, *, with_peers: bool) -> Topology | None:
    """Starts JAX on the right platform. Returns the topology, or None."""
    if topology is not None:
        # The compiler needs no device, and JAX must not look for one; a process that has started keeps what it has.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_platforms", "cpu")
    if with_peers:
        # Two libraries share the card's memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if num_devices > 1:
        # Simulated ones, where there are no others.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", num_devices)
    return None if topology is None else resolve(topology)


def bench_loss(args: Sequence[str]) -> None:
    """``alm bench loss``."""
    parser = Parser("bench loss", "Forward and backward of the forms of a loss, one row each; lists sweep.")
    parser.add_argument(
        "--loss", type=names, default=["infonce"], help="infonce, sigmoid, multi_positive, hard_negatives, lm"
    )
    parser.add_argument("--impl", type=names, help="forms; by default all that make sense here")
    parser.add_argument("--batch", type=numbers, default=[1024], help="pairs (tokens for lm): 4096,16k,1m")
    parser.add_argument("--dim", type=int, default=512, help="width of the embeddings")
    parser.add_argument("--dtype", type=names, default=["float32"], help="float32, bfloat16")
    parser.add_argument("--vocab", type=int, default=32768, help="vocabulary, for lm")
    parser.add_argument("--devices", type=int, default=1, help="devices; simulated on a CPU")
    parser.add_argument(
        "--peer",
        type=names,
        default=[],
        help="open_clip, transformers, pytorch (lm), each also with +compile",
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the pictures of a sweep; by default beside --json"
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
    rows = collect(run_sweep(sweep), own.json, ["loss", *args])
    draw(rows, own.json, own.out)


def bench_step(args: Sequence[str]) -> None:
    """``alm bench step``."""
    parser = Parser("bench step", "The whole training step of a config, optimizer included.")
    parser.add_argument("config", help="a file with get_config(), such as configs/demo.py")
    parser.add_argument("--peer", type=names, default=[], help=f"{', '.join(step.PEERS)}: on the same batch")
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
    collect(rows, own.json, ["step", *args])


def bench_encoder(args: Sequence[str]) -> None:
    """``alm bench encoder``."""
    parser = Parser("bench encoder", "An encoder alone, forward or with the gradients of its parameters.")
    parser.add_argument(
        "--encoder", type=names, default=["htsat/tiny"], help=f"family/variant: {', '.join(encoder.names())}"
    )
    parser.add_argument(
        "--pass", dest="directions", type=names, default=["backward"], help="forward, backward"
    )
    parser.add_argument("--batch", type=numbers, default=[4], help="clips or captions")
    parser.add_argument("--tokens", type=int, default=77, help="length of a caption")
    parser.add_argument("--dtype", type=names, default=["float32"], help="float32, bfloat16")
    parser.add_argument("--remat", choices=get_args(Remat), default="none", help="what is computed twice")
    parser.add_argument(
        "--attention",
        type=names,
        default=["auto"],
        help=f"how it is computed: {', '.join(encoder.ATTENTION)}",
    )
    parser.add_argument("--peer", type=names, default=[], help=f"{', '.join(encoder.PEERS)}: the same shape")
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

    collect(rows(), own.json, ["encoder", *args])


def bench_frontend(args: Sequence[str]) -> None:
    """``alm bench frontend``."""
    parser = Parser("bench frontend", "Waveforms to features.")
    parser.add_argument("--frontend", type=names, default=["torchlibrosa"], help=", ".join(frontend.SPECS))
    parser.add_argument("--batch", type=numbers, default=[16], help="clips")
    parser.add_argument("--clip-sec", type=float, default=10.0, help="seconds of a clip")
    parser.add_argument(
        "--peer", type=names, default=[], help="transformers: its extractor, where it has one"
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

    collect(rows(), own.json, ["frontend", *args])


def bench_input(args: Sequence[str]) -> None:
    """``alm bench input``."""
    parser = Parser(
        "bench input", "The input pipeline of a config's data set alone, a row a candidate and a case."
    )
    parser.add_argument("config", help="a file with get_config(), such as configs/demo.py")
    parser.add_argument("--peer", type=names, default=[], help="dataloader, grain: the same records")
    parser.add_argument("--encoding", type=names, default=["pcm"], help="pcm, flac")
    parser.add_argument("--rate", type=numbers, default=[16_000], help="sampling rates of the records, Hz")
    parser.add_argument("--seconds", type=reals, default=[5.0], help="lengths of a clip: 2.5,10")
    parser.add_argument("--batches", type=int, default=20, help="batches of a timed run")
    parser.add_argument("--step-ms", type=float, help="time of a training step: says how many cores feed it")
    parser.epilog = "Fields of the config are options, as in `alm pretrain CONFIG --help`."
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each; 5 by default")
    parser.add_argument("--json", help="write the rows to this file, or to stdout with -, and then only them")
    own, overrides = parser.parse_known_args(args)
    config = read_config(own.config, overrides, prog=f"alm bench input {own.config}")
    from alm_jax.bench.input import run_rows

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
    collect(rows, own.json, ["input", *args])


def bench_index(args: Sequence[str]) -> None:
    """``alm bench index``."""
    parser = Parser("bench index", "What an index of so many rows costs, with a filter and in a mixture.")
    parser.add_argument("--rows", type=numbers, default=[1_000_000], help="rows: 1_000_000,400_000_000")
    parser.add_argument("--folder", type=Path, help="where it is written for the time being; 120 bytes a row")
    parser.add_argument("--json", help="write the rows to this file, or to stdout with -, and then only them")
    own = parser.parse_args(args)
    from alm_jax.bench.index import run_rows

    collect(run_rows(own.rows, own.folder), own.json, ["index", *args])


def reals(text: str) -> list[float]:
    """``1,2.5``."""
    try:
        return [float(part) for part in names(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 2.5,10") from error


def bench_full_size(args: Sequence[str]) -> None:
    """``alm bench full-size``."""
    parser = Parser(
        "bench full-size",
        "Compile configs of published size for slices that are not here, unless their rows are on disk; print all.",
    )
    parser.add_argument("--configs", type=Path, default=Path("configs"), help="folder of the configs")
    parser.add_argument(
        "--rows", type=Path, default=Path("docs/performance/full_size"), help="folder of the rows on disk"
    )
    parser.add_argument("--only", type=names, default=[], help="parts of names of cases: ltu_7b,v5p")
    parser.add_argument("--no-compile", action="store_true", help="only print the table of what is there")
    own = parser.parse_args(args)
    for line in () if own.no_compile else run_cases(own.configs, own.rows, only=own.only):
        print(line, file=sys.stderr, flush=True)
    print(write_table(own.rows), end="")


def bench_report(args: Sequence[str]) -> None:
    """``alm bench report``."""
    parser = Parser("bench report", "The page of benchmarks, from the rows that were written with --json.")
    parser.add_argument("--folder", type=Path, default=Path("docs/benchmarks"), help="where the rows are")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.md"), help="the page")
    own = parser.parse_args(args)
    own.out.write_text(write_page(own.folder, relative_to=own.out.parent))


def collect(rows: Iterable[dict[str, Any]], target: str | None, args: Sequence[str]) -> list[dict[str, Any]]:
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


def draw(rows: Sequence[dict[str, Any]], target: str | None, folder: Path | None) -> None:
    """The pictures of a sweep over batch sizes, where there is a place for them."""
    path = Path(target) if target not in (None, "-") else None
    if folder is None:
        if path is None:
            return
        folder = path.parent
    stem = "loss" if path is None else path.stem
    for name, picture in (("memory", draw_memory(rows)), ("throughput", draw_throughput(rows))):
        if picture is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{stem}_{name}.png").write_bytes(picture)
