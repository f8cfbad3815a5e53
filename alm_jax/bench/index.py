"""Cost of opening, filtering, mixing and resuming with an index of any length: seconds, and megabytes of memory.

The index is written here, its recordings are virtual: every row points into one small shard. Up to `MAX_WRITTEN_ROWS`
rows are on disk; of a longer index one batch of rows is, and the footer of the file names it again and again, so that
hundreds of millions of rows need no room. Each measurement runs in its own process.
"""

import dataclasses
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from alm_jax.errors import UserError
from data_pipelines.build import serialiser
from data_pipelines.builder import settings_name
from data_pipelines.config import DataConfig, FilterConfig, MixtureConfig, MixturePart, TokenizerConfig
from data_pipelines.dataset import DatasetConfig
from data_pipelines.index import ROWS_PER_BATCH, SCHEMA
from data_pipelines.manifest import MANIFEST_FILE, Manifest, SplitManifest, index_path
from data_pipelines.prepare import prepare
from data_pipelines.records import WRITER_OPTIONS, encode_audio
from data_pipelines.source import Source

Row = dict[str, Any]

RATE_HZ = 1_000
MAX_WRITTEN_ROWS = 20_000_000
"""Number of rows above which only one batch of rows of an index is written to disk."""
_NUM_RECORDS = 512
_LICENCES = ("CC-BY-4.0", "CC0-1.0", "CC-BY-NC-4.0")
_STEPS = (10, 10_000_000)
_GROWTH_STEPS = 1_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class VirtualClipsConfig(DatasetConfig):
    """Rows without their own recordings, to measure an index with."""

    num_rows: int
    """Number of rows of the split ``train``."""

    def read(self, problems: list[str] | None = None) -> Source:
        """Raises UserError: there is nothing to build it from."""
        raise UserError(f"the index of {self.num_rows:,} virtual clips is written by `alm bench index`")


def run_rows(num_rows: Sequence[int], folder: Path | None = None) -> Iterator[Row]:
    """Yields a row of figures for each length of the index; files below ``folder`` are removed afterwards."""
    with tempfile.TemporaryDirectory(dir=folder) as cache_dir:
        for count in num_rows:
            config = _config(count, cache_dir)
            for part in {count, min(count, 1_000)}:
                write_virtual(VirtualClipsConfig(num_rows=part), Path(cache_dir))
            index = next(Path(cache_dir).rglob(f"*-{RATE_HZ}hz-*/built/index/train.arrow"))
            size = index.stat().st_size
            # The first process makes the file of the rows that the filter keeps, and trains the tokenizer.
            first = _measure_apart(config)
            again = _measure_apart(config)
            assert first["fingerprint"] == again["fingerprint"]
            yield {"index_rows": count, "index_bytes": size, "first_open_sec": first["open_sec"], **again}
            for path in Path(cache_dir).iterdir():
                subprocess.run(["rm", "-rf", path], check=True)


def _config(num_rows: int, cache_dir: str) -> DataConfig:
    """A mixture of the long data set, filtered, and a short one."""
    parts = (
        MixturePart(
            name="long",
            dataset=VirtualClipsConfig(num_rows=num_rows),
            eval_split="train",
            filter=FilterConfig(min_sec=0.25, licences=("CC-BY-4*", "CC0*"), max_caption_words=6),
        ),
        MixturePart(
            name="short", dataset=VirtualClipsConfig(num_rows=min(num_rows, 1_000)), eval_split="train"
        ),
    )
    return DataConfig(
        dataset=MixtureConfig(parts=parts),
        tokenizer=TokenizerConfig(vocab_size=300, max_length=16),
        source_sec=0.5,
        cache_dir=cache_dir,
    )


def write_virtual(settings: VirtualClipsConfig, cache_dir: Path) -> None:
    """Writes a prepared data set of virtual clips where `prepare` finds it."""
    home = cache_dir / "virtual_clips" / settings_name(settings, RATE_HZ, "pcm")
    folder = home / "built"
    path = index_path(folder, "train")
    path.parent.mkdir(parents=True, exist_ok=True)
    if settings.num_rows <= MAX_WRITTEN_ROWS:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
            for start in range(0, settings.num_rows, ROWS_PER_BATCH):
                writer.write_batch(_virtual_batch(start, min(ROWS_PER_BATCH, settings.num_rows - start)))
    else:
        _write_repeated(path, settings.num_rows)
    shard = "virtual_clips-train.array_record-00000-of-00001"
    _write_records(folder / shard)
    split = SplitManifest(
        num_planned=settings.num_rows,
        num_rows=settings.num_rows,
        num_missing=0,
        num_undecodable=0,
        seconds=settings.num_rows * 0.5,
        shortest_sec=0.01,
        longest_sec=1.0,
        num_captions=settings.num_rows,
        num_negatives=0,
        num_labels=0,
        licences=dict.fromkeys(_LICENCES, settings.num_rows // len(_LICENCES)),
        ids_sha256="",
        fingerprint=f"virtual {settings.num_rows}",
        index_bytes=path.stat().st_size,
        shards=(shard,),
        shard_lengths=(_NUM_RECORDS,),
        shard_bytes=((folder / shard).stat().st_size,),
    )
    manifest = Manifest(
        name="virtual_clips",
        sample_rate_hz=RATE_HZ,
        encoding="pcm",
        class_names=(),
        signature="",
        notes={},
        splits={"train": split},
    )
    (folder / MANIFEST_FILE).write_text(manifest.to_json(), "utf-8")


def _virtual_batch(start: int, count: int) -> pa.RecordBatch:
    """Makes rows of varying length, licence and number of words."""
    numbers = np.arange(start, start + count)
    words = np.array(
        [" ".join(["a", "sound", "of", "rain", "and", "wind", "far", "away"][:n]) for n in range(1, 9)]
    )
    one_each = np.arange(count + 1, dtype=np.int64)
    none = pa.array(np.zeros(count + 1, np.int64))
    captions = pa.array(words[numbers % 8], pa.large_string())
    columns = {
        "id": pa.array(np.char.add("clip-", numbers.astype(np.str_)), pa.large_string()),
        "captions": pa.LargeListArray.from_arrays(pa.array(one_each), captions),
        "negatives": pa.LargeListArray.from_arrays(none, pa.array([], pa.large_string())),
        "labels": pa.LargeListArray.from_arrays(none, pa.array([], pa.int32())),
        "num_samples": pa.array(10 * (1 + numbers % 100)),
        "record": pa.array(numbers % _NUM_RECORDS),
        "licence": pa.array((numbers % len(_LICENCES)).astype(np.int16)),
        "source_sha256": pa.nulls(count, pa.binary(32)),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def _write_repeated(path: Path, num_rows: int) -> None:
    """Writes an index whose footer names one batch of rows repeatedly; the last may be shorter.

    A file is written with as many small batches; then the places in its footer are changed. A place is a struct of
    the Arrow format: where the batch begins (int64), the length of its metadata (int32), padding, and of its body
    (int64).
    """
    whole, rest = divmod(num_rows, ROWS_PER_BATCH)
    small = _virtual_batch(0, 1)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        writer.write_batch(_virtual_batch(0, ROWS_PER_BATCH))
        for _ in range(whole - 1):
            writer.write_batch(small)
        if rest:
            writer.write_batch(_virtual_batch(whole * ROWS_PER_BATCH, rest))
    content = bytearray(path.read_bytes())
    (footer_bytes,) = struct.unpack("<i", content[-10:-6])
    at = _find_places(content, len(content) - 10 - footer_bytes, whole + bool(rest))
    place = content[at : at + 24]
    for number in range(whole):
        content[at + 24 * number : at + 24 * (number + 1)] = place
    path.write_bytes(content)
    with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
        assert reader.num_record_batches == whole + bool(rest)
        assert all(reader.get_batch(i).num_rows == ROWS_PER_BATCH for i in (0, 1, whole - 1))


def _find_places(content: bytearray, footer: int, count: int) -> int:
    """Finds where the vector of ``count`` places begins in the footer: after its length, each place where the
    previous one ended."""
    at = footer
    while True:
        at = content.index(struct.pack("<i", count), at) + 4
        places = list(struct.iter_unpack("<qiiq", content[at : at + 24 * min(count, 3)]))
        ends = [first + metadata + body for first, metadata, _, body in places]
        if len(places) == min(count, 3) and [own[0] for own in places[1:]] == ends[:-1]:
            return at


def _write_records(path: Path) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    from data_pipelines.build import Example
    from data_pipelines.source import SourceRow

    serialise = serialiser("pcm")
    writer = ArrayRecordWriter(str(path), WRITER_OPTIONS)
    pcm = np.arange(RATE_HZ, dtype=np.int16)
    for number in range(_NUM_RECORDS):
        example = Example(
            pieces=lambda: iter([pcm]),
            num_samples=len(pcm),
            captions=("a",),
            negatives=(),
            source_sha256="",
            notes=(),
        )
        own = SourceRow(id=str(number), audio=None, captions=("a",), split="train", source="")  # type: ignore[arg-type]
        writer.write(serialise(own, example, [], 0, encode_audio(pcm, "pcm", RATE_HZ)))
    writer.close()


def _measure_apart(config: DataConfig) -> Row:
    """Runs `measure` in its own process."""
    assert isinstance(config.dataset, MixtureConfig)
    dataset = config.dataset.parts[0].dataset
    assert isinstance(dataset, VirtualClipsConfig)
    code = (
        "import json, sys; from alm_jax.bench.index import measure; "
        "print(json.dumps(measure(int(sys.argv[1]), sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, str(dataset.num_rows), config.cache_dir]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row: Row = json.loads(found.stdout.splitlines()[-1])
    return row


def measure(num_rows: int, cache_dir: str) -> Row:
    """Opens the index of `write_virtual`, resumes, and reads, in this process."""
    from data_pipelines.pipeline import train_batches
    from data_pipelines.tensorflow_cpu import load_tensorflow

    load_tensorflow()
    config = _config(num_rows, cache_dir)
    prepare(_config(min(num_rows, 1_000), cache_dir), RATE_HZ)  # whatever is loaded late is loaded
    before, anonymous_before = resident_mb(), resident_mb("RssAnon")
    start, cpu_start = time.perf_counter(), time.process_time()
    prepared = prepare(config, RATE_HZ)
    fingerprint = prepared.fingerprint
    row: Row = {
        "open_sec": time.perf_counter() - start,
        "open_cpu_sec": time.process_time() - cpu_start,
        "open_mb": resident_mb() - before,
        "open_anonymous_mb": resident_mb("RssAnon") - anonymous_before,
        "kept_rows": len(prepared.split("long/train")),
        "fingerprint": fingerprint,
    }
    for step in _STEPS:
        start = time.perf_counter()
        batches = train_batches(prepared, "train", batch_size=32, seed=0, start_step=step)
        next(batches)
        row[f"resume_at_{step}_sec"] = time.perf_counter() - start
    for _ in range(100):
        next(batches)
    after_100 = resident_mb("RssAnon")
    start = time.perf_counter()
    for _ in range(_GROWTH_STEPS):
        next(batches)
    row["batches_per_sec"] = _GROWTH_STEPS / (time.perf_counter() - start)
    row["growth_mb"] = resident_mb("RssAnon") - after_100
    row["read_mb"] = resident_mb() - before
    return row


def resident_mb(kind: str = "VmRSS") -> float:
    """Memory of this process that is in RAM, megabytes: ``VmRSS`` with pages of mapped files, ``RssAnon`` without."""
    with open(f"/proc/{os.getpid()}/status", encoding="ascii") as status:
        (line,) = (line for line in status if line.startswith(f"{kind}:"))
    return int(line.split()[1]) / 1000
