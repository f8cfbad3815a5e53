"""Damages the files of every reader at random, and reads them: nothing may run, hang, grow or fail in an unclear way.

    python tests/interop/fuzz_readers.py --inputs 200000

Each input is a valid file of a random nano model with one or a few parts of it changed: a value of its JSON, a key, a
shape or an opcode of its archive, bytes of it. It must be read, or refused by a message of ours (exit code 2 or 3) that
names the file.
"""

import argparse
import collections
import contextlib
import copy
import dataclasses
import functools
import itertools
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from alm_jax.errors import AlmError
from alm_jax.interop import formats
from alm_jax.interop.clap import _read_tokenizer
from alm_jax.interop.clap_config import frontend_to_preprocessor
from alm_jax.interop.folder import import_model
from alm_jax.interop.format import Format, variables_to_arrays
from alm_jax.interop.model_files import PREPROCESSOR
from alm_jax.interop.safetensors_io import INDEX, WEIGHTS, write_weights
from alm_jax.run.experiment import read_experiment
from alm_jax.run.model_folder import CONFIG as ALM_CONFIG
from alm_jax.run.model_folder import load_model_folder, save_model_folder

LONGEST_SEC = 10
MOST_BYTES = 1 << 30
# Values that a field of another type, size or depth may have.
STRANGE: list[Any] = [
    None, "", "x", "gelu", 0, -1, 1, 2, 3, 7, 10**9, 2**31, 2**40, 10**30, -(2**63), 0.5, -0.0, 1e-300, 1e300,
    float("nan"), float("inf"), True, False, [], [0], [1, 2], [None], {}, {"a": {}}, "../../etc/passwd", "\x00",
    "a" * 300,
]  # fmt: skip


def mutate_json(value: Any, rng: random.Random) -> Any:
    """A copy with one to three places changed, removed, wrapped or put deep."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return rng.choice(STRANGE)
        parent, key = rng.choice(places)
        match rng.randrange(8):
            case 0:
                del parent[key]
            case 1:
                parent[key] = [parent[key]]
            case 2:
                parent[key] = functools.reduce(lambda inner, _: {"x": inner}, range(50), parent[key])
            case 3 if isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
                parent[key] = parent[key] * rng.choice((-1, 2, 3, 1000, 10**9, 0.5))
            case _:
                parent[key] = copy.deepcopy(rng.choice(STRANGE))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _places(item)


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """A copy with bytes flipped, removed, repeated or cut off; mostly near its beginning or end, where headers are."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not data:
            break
        near = rng.choice((64, 512, len(data)))
        at = rng.randrange(min(near, len(data)))
        at = at if rng.random() < 0.6 else len(data) - 1 - at
        match rng.randrange(6):
            case 0:
                del data[at:]
            case 1:
                del data[at : at + rng.choice((1, 4, 100))]
            case 2:
                data[at:at] = data[at : at + rng.choice((1, 8, 100))]
            case 3:
                data[at : at + 4] = rng.choice(
                    (b"\xff\xff\xff\x7f", b"\xff" * 4, bytes(4), b"\x00\x00\x00\x10")
                )
            case _:
                data[at] = rng.randrange(256)
    return bytes(data)


@dataclasses.dataclass
class Case:
    """One reader with a valid input of it."""

    name: str
    damage: Callable[[random.Random], None]
    """Writes a damaged file."""
    read: Callable[[], Any]
    weight: int = 8
    """Its share of the inputs; less for those that cost the writing of a whole archive."""


def build_cases(folder: Path) -> list[Case]:
    """A case for every reader and format, with valid files under ``folder``."""
    cases: list[Case] = []
    seen: set[str] = set()
    for parity in formats.PARITY:
        layout = parity.layout
        if layout.name in seen:
            continue
        seen.add(layout.name)
        layout = dataclasses.replace(layout, abstract=_remember_shapes(layout))
        formats.FORMATS[layout.name] = layout
        rng = np.random.default_rng(0)
        variables = jax.tree.map(
            lambda leaf, rng=rng: rng.standard_normal(leaf.shape).astype(leaf.dtype),
            layout.abstract(parity.config),
        )
        arrays = variables_to_arrays(layout, parity.config, variables)
        place = folder / layout.name
        place.mkdir()
        if layout.write_config is not None:
            cases += _folder_cases(place, layout, parity.config, arrays)
        if layout.infer_config is not None:
            cases += _archive_cases(place, layout, arrays)
    cases.append(_tokenizer_case(folder))
    cases.append(_sentence_case(folder, formats.FORMATS["bert"]))
    cases += _own_cases(folder)
    return cases


def _remember_shapes(layout: Format) -> Callable[[Any], Any]:
    """``layout.abstract`` that traces the module for one config in fifty alone, where another one had the same arrays.

    What it raises is one message of `arrays_to_variables` whatever it is, and tracing takes a hundred times as long as
    everything else.
    """
    known: dict[Any, Any] = {}
    calls = itertools.count()

    def abstract(config: Any) -> Any:
        arrays = tuple((entry.path, entry.shape) for entry in layout.entries(config))
        if arrays not in known or next(calls) % 50 == 49:
            known[arrays] = layout.abstract(config)
        return known[arrays]

    return abstract


def _folder_cases(place: Path, layout: Format, config: Any, arrays: dict[str, np.ndarray]) -> list[Case]:
    fields = {"architectures": list(layout.architectures[:1]), **layout.write_config(config)}  # type: ignore[misc]
    write_weights(place, arrays)
    (place / "config.json").write_text(json.dumps(fields))
    if hasattr(config, "frontend") and PREPROCESSOR and layout.name == "clap":
        preprocessor = frontend_to_preprocessor(config.frontend)
        (place / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    read = functools.partial(import_model, place, layout=layout)
    read()
    cases = [
        Case(
            f"{layout.name}: {name}",
            functools.partial(_damage_json, place / name, json.loads(path.read_text())),
            read,
        )
        for name in ("config.json", "preprocessor_config.json")
        if (path := place / name).is_file()
    ]
    # Text, not values: cut off, or with strange bytes.
    cases.append(Case(f"{layout.name}: text of config.json", _damage_bytes(place / "config.json"), read))
    if layout.name in ("bert", "clap", "t5"):
        cases.append(Case(f"{layout.name}: safetensors", _damage_bytes(place / WEIGHTS), read))
        sharded = place.parent / f"{layout.name}-sharded"
        sharded.mkdir()
        (sharded / "config.json").write_text(json.dumps(fields))
        write_weights(sharded, arrays, shard_bytes=200_000)
        index = json.loads((sharded / INDEX).read_text())
        cases.append(
            Case(
                f"{layout.name}: index",
                functools.partial(_damage_json, sharded / INDEX, index),
                functools.partial(import_model, sharded, layout=layout),
            )
        )
    return cases


def _archive_cases(place: Path, layout: Format, arrays: dict[str, np.ndarray]) -> list[Case]:
    small = {
        f"{layout.key_prefix}{key}": torch.as_tensor(array)
        for key, array in arrays.items()
        if array.dtype != object
    }
    cases = []
    for zipped in (True, False):
        path = place / f"{'zip' if zipped else 'legacy'}.pt"

        def save(state: Any, path: Path = path, zipped: bool = zipped) -> None:
            for name in reversed(layout.archive_entry):
                state = {name: state}
            torch.save(state, path, _use_new_zipfile_serialization=zipped)

        save(small)
        read = functools.partial(import_model, path)
        # Not every nano model has the sizes that its archive's reader assumes, 128 bands of AudioMAE say.
        with contextlib.suppress(AlmError):
            read()
        cases.append(Case(f"{layout.name}: bytes, {path.stem}", _damage_bytes(path), read, 4))
        if zipped:
            cases.append(Case(f"{layout.name}: keys", functools.partial(_damage_keys, small, save), read, 1))
    return cases


def _damage_keys(state: dict[str, Any], save: Callable[[Any], None], rng: random.Random) -> None:
    state = dict(state)
    for _ in range(rng.choice((1, 1, 2))):
        key = rng.choice(sorted(state))
        match rng.randrange(7):
            case 0 | 1:
                del state[key]
            case 2:
                state[key] = torch.zeros([rng.choice((0, 1, 2, 3, 5, 70)) for _ in range(rng.randrange(5))])
            case 3:
                state[key.replace("0", str(rng.choice((1, 9, 10**3, 10**9, "x"))))] = state[key]
            case 4:
                state[key] = rng.choice((None, "x", 3, [1], {"a": 1}, torch.ones(2, dtype=torch.complex64)))
            case 5:
                state[key] = torch.zeros(1).expand(*rng.choice(((1 << 20,), (1 << 15, 1 << 15), (3, 3, 3))))
            case _:
                state[key] = state[key].flatten()[:1].reshape(()) if hasattr(state[key], "flatten") else 0
        if not state:
            break
    save(state)


def _tokenizer_case(folder: Path) -> Case:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(
        ["a dog barks", "rain on a roof"],
        trainers.BpeTrainer(vocab_size=80, special_tokens=special, show_progress=False),
    )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    damage = functools.partial(_damage_json, path, json.loads(path.read_text()))
    return Case("tokenizer.json", damage, functools.partial(_read_tokenizer, path))


def _sentence_case(folder: Path, bert: Format) -> Case:
    place, model = folder / "sentence", folder / "bert"
    (place / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", WEIGHTS):
        (place / name).write_bytes((model / name).read_bytes())
    (place / "tokenizer.json").write_text("{}")
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": "1_Pooling" * (i == 1),
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    pooling = {
        "word_embedding_dimension": 64,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_cls_token": False,
    }
    pooling_file = place / "1_Pooling" / "config.json"

    def damage(rng: random.Random) -> None:
        (place / "modules.json").write_text(json.dumps(modules))
        pooling_file.write_text(json.dumps(pooling))
        if rng.random() < 0.7:
            _damage_json(place / "modules.json", modules, rng)
        else:
            _damage_json(pooling_file, pooling, rng)

    return Case("sentence encoder: modules.json", damage, functools.partial(import_model, place), 1)


def _own_cases(folder: Path) -> list[Case]:
    """What we write ourselves: configs of runs, of every kind and of older versions, and a folder of `alm import`."""
    cases = []
    golden = Path(__file__).parents[1] / "golden" / "configs"
    for source in sorted(golden.glob("*.json")):
        path = folder / f"run-{source.name}"
        value = json.loads(source.read_text())
        read = functools.partial(_read_run_config, path)
        cases.append(
            Case(f"run config: {source.name}", functools.partial(_damage_json, path, value), read, 1)
        )
    imported = folder / "imported"
    save_model_folder(imported, import_model(folder / "bert"))
    path = imported / ALM_CONFIG
    damage = functools.partial(_damage_json, path, json.loads(path.read_text()))
    return [*cases, Case("alm_config.json", damage, functools.partial(load_model_folder, imported))]


def _read_run_config(path: Path) -> None:
    read_experiment(json.loads(path.read_text()), str(path))


def _damage_json(path: Path, value: Any, rng: random.Random) -> None:
    path.write_text(json.dumps(mutate_json(value, rng)))


def _damage_bytes(path: Path) -> Callable[[random.Random], None]:
    content = path.read_bytes()

    def damage(rng: random.Random) -> None:
        path.write_bytes(mutate_bytes(content, rng))

    return damage


@contextlib.contextmanager
def _restored(folder: Path) -> Iterator[None]:
    """Puts the files of a folder back as they were."""
    kept = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    try:
        yield
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


class HangError(BaseException):
    """A reader took too long."""


class ExecutionError(BaseException):
    """A reader called what no reader calls."""


def _forbid_execution() -> None:
    """From now on a new process, or anything compiled or evaluated from a damaged file, is an error."""

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in (
            "os.system",
            "subprocess.Popen",
            "os.exec",
            "os.posix_spawn",
            "os.fork",
            "pty.spawn",
            "pickle.find_class",
        ):
            raise ExecutionError(f"{event}{arguments!r:.200}")

    sys.addaudithook(watch)


def run(num_inputs: int, seed: int = 0, *, report: Callable[[str], None] = print) -> list[str]:
    """Reads that many damaged files, the readers in turn. Returns what went wrong, in a line each."""

    def raise_hang(*_: Any) -> None:
        raise HangError

    signal.signal(signal.SIGALRM, raise_hang)
    problems: list[str] = []
    outcomes: collections.Counter[str] = collections.Counter()
    num_read = 0
    rng, slowest = random.Random(seed), 0.0
    panics = os.open(os.devnull, os.O_WRONLY)  # Rust prints its panics before they are errors
    stderr = os.dup(2)
    # In memory where there is such a folder: each input is a file.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = build_cases(Path(name))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        shares = sum(case.weight for case in cases)
        os.dup2(panics, 2)
        try:
            for case in cases:
                place = Path(getattr(case.read, "args", [name])[0])
                with _restored(place if place.is_dir() else place.parent):
                    for _ in range(-(-num_inputs * case.weight // shares)):
                        num_read += 1
                        case.damage(rng)
                        start = time.perf_counter()
                        signal.alarm(LONGEST_SEC)
                        try:
                            case.read()
                            outcomes["read"] += 1
                        except AlmError as error:
                            outcomes["refused"] += 1
                            if error.exit_code not in (2, 3) or name not in str(error):
                                problems.append(f"{case.name}: names no file: {error!s:.300}")
                        except BaseException as error:
                            if isinstance(error, KeyboardInterrupt):
                                raise
                            where = traceback.extract_tb(error.__traceback__)[-1]
                            problems.append(
                                f"{case.name}: {type(error).__name__} {error!s:.150} at {where.filename}:{where.lineno}"
                            )
                        finally:
                            signal.alarm(0)
                        slowest = max(slowest, time.perf_counter() - start)
        finally:
            os.dup2(stderr, 2)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if grown > MOST_BYTES:
        problems.append(f"memory grew by {grown / 2**20:.0f} MiB")
    report(
        f"{num_read} inputs to {len(cases)} readers: {outcomes['read']} read, {outcomes['refused']} "
        f"refused, {len(problems)} problems; slowest {slowest:.2f} s; memory grew by {grown / 2**20:.0f} MiB to "
        f"{peak / 2**20:.0f} MiB"
    )
    return problems


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    own = parser.parse_args()
    _forbid_execution()
    problems = run(own.inputs, own.seed)
    for line, count in collections.Counter(problems).most_common(60):
        print(count, line)
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
