"""Fuzz test of every reader: thousands of damaged recordings, tables and tars must be read, or refused with a
DataError, in bounded time.

    python -m data_pipelines.fuzz --inputs 100000 --seed 0

Inputs are made from small valid files by flipping, cutting, repeating, inserting and overwriting bytes, from a seed.
Each block of inputs is read in its own process, with a memory limit and an alarm for each input, so that crashes of a
decoder, endless loops and decompression bombs are detected and reported by the number of the input.
"""

import argparse
import collections
import csv
import dataclasses
import io
import json
import multiprocessing
import os
import resource
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from alm_jax.errors import AlmError
from data_pipelines.datasets.recordings import RecordingsConfig
from data_pipelines.decode import read_audio

MAX_SEC = 10.0
"""Longest processor time for one input."""
MAX_BYTES = 2 << 30
"""Largest growth of a process's memory beyond its start."""
BLOCK = 2000
"""Inputs read in one process."""
_RATE_HZ = 16_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of a block of inputs."""

    counts: collections.Counter[str]
    """Number of inputs that were read or refused, by kind: ``flac read``, ``csv refused``."""
    failures: tuple[str, ...]
    """Inputs that were neither read nor refused cleanly."""
    slowest_sec: float
    most_bytes: int
    """Memory growth of the process."""


def whole_inputs() -> dict[str, bytes]:
    """Makes a small valid input of every kind, by file ending."""
    rng = np.random.default_rng(0)
    signal_ = np.cumsum(rng.uniform(-0.1, 0.1, (1200, 1)), axis=0) % 1.0 - 0.5
    kinds = {
        "wav": ("WAV", "PCM_16"),
        "24.wav": ("WAV", "PCM_24"),
        "float.wav": ("WAV", "FLOAT"),
        "flac": ("FLAC", "PCM_16"),
        "ogg": ("OGG", "VORBIS"),
        "opus": ("OGG", "OPUS"),
        "mp3": ("MP3", "MPEG_LAYER_III"),
        "aiff": ("AIFF", "PCM_16"),
        "au": ("AU", "PCM_16"),
    }
    inputs = {}
    for ending, (container, subtype) in kinds.items():
        file = io.BytesIO()
        soundfile.write(file, signal_, _RATE_HZ, format=container, subtype=subtype)
        inputs[ending] = file.getvalue()
    rows = [
        {
            "audio": f"{i}.wav",
            "text": f"a söund, number {i}",
            "split": "train" if i % 2 else "test",
            "start": i / 10,
        }
        for i in range(6)
    ]
    for ending, delimiter in (("csv", ","), ("tsv", "\t")):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
        inputs[ending] = text.getvalue().encode()
    inputs["jsonl"] = "".join(json.dumps(row | {"tags": ["x", None, 1]}) + "\n" for row in rows).encode()
    short = io.BytesIO()
    soundfile.write(short, signal_[:100], _RATE_HZ, format="WAV")
    inputs["parquet"] = _parquet([row | {"start": 0.0, "audio": short.getvalue()} for row in rows])
    tar_file = io.BytesIO()
    with tarfile.open(fileobj=tar_file, mode="w") as tar:
        for i in range(3):
            parts = (
                ("wav", short.getvalue()),
                ("json", b'{"text": ["a", "b"], "label": 3}'),
                ("txt", b"a\nb"),
            )
            for ending, content in parts[: 2 + i % 2]:
                member = tarfile.TarInfo(f"clip{i}.{ending}" if i else "x" * 120 + f".{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    inputs["tar"] = tar_file.getvalue()
    return inputs


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def damage(whole: bytes, rng: np.random.Generator) -> bytes:
    """Makes an input damaged in one to three places; one in twenty is left undamaged."""
    if rng.random() < 0.05:
        return whole
    data = bytearray(whole)
    for _ in range(int(rng.integers(1, 4))):
        if not data:
            break
        place = int(rng.integers(len(data)))
        # Headers matter more than samples: half of the damage is there.
        place = place % 200 if rng.random() < 0.5 else place
        length = int(rng.integers(1, 9))
        match int(rng.integers(7)):
            case 0:
                data[place % len(data)] ^= 1 << int(rng.integers(8))
            case 1:
                data[place : place + length] = rng.bytes(length)
            case 2:
                data[place : place + length] = b"\xff" * length
            case 3:
                data[place : place + length] = bytes(length)
            case 4:
                del data[place:]
            case 5:
                del data[place : place + length]
            case 6:
                data[place:place] = data[place : place + 64] * int(rng.integers(1, 6))
    return bytes(data)


def read_input(ending: str, content: bytes, folder: Path) -> None:
    """Reads an input as a user's file is read. Raises AlmError where it is refused."""
    if ending in ("csv", "tsv", "jsonl", "parquet", "tar"):
        path = folder / f"input.{ending}"
        path.write_bytes(content)
        # Half of them are read as `alm data check` reads them, which continues after a bad row.
        problems: list[str] | None = [] if len(content) % 2 else None
        for row in RecordingsConfig(path=str(path)).read(problems).rows[:3]:
            row.audio.state()
            if ending in ("tar", "parquet"):
                row.audio.read(_RATE_HZ, start_sec=row.start_sec, end_sec=row.end_sec)
        return
    path = folder / f"input.{ending}"
    path.write_bytes(content)
    from_file = _outcome(lambda: read_audio(path, _RATE_HZ, max_sec=60.0))
    from_memory = _outcome(lambda: read_audio(content, _RATE_HZ, max_sec=60.0))
    if isinstance(from_file, AlmError) != isinstance(from_memory, AlmError):
        raise RuntimeError(f"read from a file: {from_file!r}; from memory: {from_memory!r}")
    if isinstance(from_file, AlmError):
        raise from_file
    if not np.isfinite(from_file).all() or not len(from_file):
        raise RuntimeError("the reader returned no samples, or some that are not finite")


def _outcome(read: Callable[[], np.ndarray]) -> np.ndarray | AlmError:
    try:
        return read()
    except AlmError as error:
        return error


def fuzz_block(first: int, count: int, seed: int) -> Outcome:
    """Reads inputs ``first`` to ``first + count`` of a seed in this process."""
    inputs = whole_inputs()
    endings = list(inputs)
    counts: collections.Counter[str] = collections.Counter()
    failures = []
    slowest = 0.0
    start_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, first + count):
            ending = endings[number % len(endings)]
            content = damage(inputs[ending], np.random.default_rng([seed, number]))
            started = time.process_time()
            try:
                read_input(ending, content, Path(folder))
                counts[f"{ending} read"] += 1
            except AlmError as error:
                counts[f"{ending} refused"] += 1
                if len(str(error)) < 10 or len(str(error)) > 2000:
                    failures.append(f"{number} ({ending}): an unclear error: {str(error)[:300]!r}")
            except Exception as error:
                failures.append(f"{number} ({ending}): {type(error).__name__}: {str(error)[:300]}")
            took = time.process_time() - started
            slowest = max(slowest, took)
            if took > MAX_SEC:
                failures.append(f"{number} ({ending}): {took:.1f} s")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - start_bytes
    return Outcome(counts=counts, failures=tuple(failures), slowest_sec=slowest, most_bytes=grown)


def _work(first: int, count: int, seed: int, results: "multiprocessing.Queue[Outcome]") -> None:
    """Reads inputs in a process with bounded memory and time."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders write to the standard error
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_BYTES, used + MAX_BYTES))
    signal.alarm(int(MAX_SEC * 3 + count))
    results.put(fuzz_block(first, count, seed))


def fuzz(num_inputs: int, seed: int) -> Iterator[Outcome]:
    """Reads blocks of inputs, each in its own process; a process that dies is a failure of its block."""
    context = multiprocessing.get_context("spawn")
    for first in range(0, num_inputs, BLOCK):
        count = min(BLOCK, num_inputs - first)
        results: multiprocessing.Queue[Outcome] = context.Queue()
        process = context.Process(target=_work, args=(first, count, seed, results))
        process.start()
        process.join(MAX_SEC * 3 + count + 60)
        if process.exitcode == 0:
            yield results.get(timeout=10)
            continue
        process.kill()
        died = f"{first} to {first + count - 1}: the process ended with {process.exitcode}"
        yield Outcome(counts=collections.Counter(), failures=(died,), slowest_sec=0.0, most_bytes=0)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m data_pipelines.fuzz", description="Read damaged inputs.")
    parser.add_argument("--inputs", type=int, default=100_000, help="how many; 100,000")
    parser.add_argument("--seed", type=int, default=0, help="seed of the inputs; default 0")
    own = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    failures: list[str] = []
    slowest, most, started = 0.0, 0, time.monotonic()
    for number, outcome in enumerate(fuzz(own.inputs, own.seed), start=1):
        counts += outcome.counts
        failures += outcome.failures
        slowest, most = max(slowest, outcome.slowest_sec), max(most, outcome.most_bytes)
        for failure in outcome.failures:
            print(failure, flush=True)
        if number % 20 == 0:
            done = sum(counts.values())
            print(
                f"{done:,} inputs, {len(failures)} failures, {time.monotonic() - started:.0f} s",
                file=sys.stderr,
            )
    for kind in sorted(counts):
        print(f"{kind}: {counts[kind]:,}")
    print(
        f"{sum(counts.values()):,} inputs in {time.monotonic() - started:.0f} s: {len(failures)} failures; the slowest "
        f"took {slowest:.2f} s, a process grew by at most {most / 2**20:.0f} MiB"
    )
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
