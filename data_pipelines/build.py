"""Builds a data set shard by shard: on threads here, or on Apache Beam, with the same code and the same bytes.

The rows of a source are cut into shards of `ROWS_PER_SHARD`, in order. `write_shard` writes a shard from its rows
alone: a file of records, a piece of the index, and and last a report. To continue a build that was killed, make the
same call: shards that have a report are kept, the others are written again. `build` then joins the pieces of the index
and writes the manifest; until then the folder is not complete.

    FOLDER/building/train-00003.plan       rows of the shard, pickled
    FOLDER/building/train-00003.arrow      its piece of the index
    FOLDER/building/train-00003.json       its report
    FOLDER/esc50-train.array_record-00003-of-00010
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pickle
import shlex
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from alm_jax.errors import DataError, UserError
from data_pipelines.build_progress import Progress
from data_pipelines.captions import normalise_caption
from data_pipelines.index import SCHEMA, IndexWriter
from data_pipelines.manifest import (
    MANIFEST_FILE,
    REJECTS_FILE,
    Manifest,
    SplitManifest,
    index_path,
)
from data_pipelines.records import WRITER_OPTIONS, Encoding, encode_audio, split_pieces
from data_pipelines.source import Source, SourceRow
from data_pipelines.tensorflow_cpu import load_tensorflow

Item = TypeVar("Item")
Result = TypeVar("Result")
Pcm = Int[np.ndarray, " S"]

ROWS_PER_SHARD = 512
"""Rows of the source in a shard: 160 MB of ten-second clips at 16 kHz."""
_BUILDING = "building"
_COUNTERS = "alm_jax"  # namespace of what Beam counts

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildSpec:
    """What every worker of a build needs; can be pickled."""

    name: str
    """Name of the data set: ``esc50``."""
    folder: Path
    """Folder that the data set is built in. For a bucket it is a local folder, uploaded when complete."""
    sample_rate_hz: int
    encoding: Encoding = "pcm"
    class_names: tuple[str, ...] = ()
    max_bad_fraction: float = 0.0
    """Largest fraction of the rows that may be rejected before the build gives up."""
    signature: str = ""
    """State of the sources."""
    rows_per_shard: int = ROWS_PER_SHARD

    @property
    def scratch(self) -> Path:
        """Scratch folder, removed at the end of the build."""
        return self.folder / _BUILDING

    def shard_name(self, split: str, number: int, num_shards: int) -> str:
        """File name of a shard, as TFDS names it."""
        return f"{self.name}-{split}.array_record-{number:05d}-of-{num_shards:05d}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One shard to write."""

    split: str
    number: int
    num_shards: int
    """Number of the shard in its split."""
    num_rows: int
    num_planned: int
    """Rows of the whole build."""
    num_rejected: int = 0
    """Rows of the build that are already known to be rejected."""

    @property
    def stem(self) -> str:
        """Prefix of the shard's files in the scratch folder."""
        return f"{self.split}-{self.number:05d}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardReport:
    """Result of writing a shard."""

    num_rows: int
    num_records: int
    record_bytes: int
    num_samples: int
    shortest_samples: int
    longest_samples: int
    num_captions: int
    num_negatives: int
    num_labels: int
    licences: dict[str, int]
    """Rows by licence, in the order of the licence numbers of its piece of the index."""
    rejects: list[dict[str, str]]
    notes: dict[str, int]
    fingerprint: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A row that was read."""

    pieces: Callable[[], Iterator[Pcm]]
    """Its samples, in pieces of `records.PIECE_SEC`."""
    num_samples: int
    captions: Sequence[str]
    """Captions, cleaned; at least one."""
    negatives: Sequence[str]
    source_sha256: str
    notes: Sequence[str]
    """Changes made while reading, for the counts."""


def make_example(row: SourceRow, sample_rate_hz: int) -> Example:
    """Reads a row's recording and cleans its captions. Raises DataError with the reason where the row must be
    rejected."""
    captions = [caption for caption in map(normalise_caption, row.captions) if caption]
    if not captions:
        raise DataError("empty caption")
    recording = row.audio.read(sample_rate_hz, start_sec=row.start_sec, end_sec=row.end_sec)
    # A negative caption equal to a right caption would teach the opposite.
    negatives = [text for text in map(normalise_caption, row.negatives) if text and text not in captions]
    dropped = ["empty captions dropped"] * (len(row.captions) - len(captions))
    return Example(
        pieces=lambda: split_pieces(recording.blocks(), sample_rate_hz),
        num_samples=recording.num_samples,
        captions=captions,
        negatives=negatives,
        source_sha256=recording.sha256,
        notes=[*row.notes, *recording.notes, *dropped],
    )


def build(spec: BuildSpec, source: Source, *, beam: str | None = None) -> Manifest:
    """Builds the data set in ``spec.folder``, or continues a build that was killed.

    Args:
      beam: options of an Apache Beam pipeline, ``--runner=DataflowRunner --project=...``; the folder must be
          reachable by its workers. None: use threads of this process.

    Raises:
      DataError: too many rows are bad, or every row of a split.
      UserError: Beam is requested and not installed, or its options are invalid.
    """
    shards = _plan(spec, source)
    with Progress(spec.name, sum(shard.num_rows for shard in shards)) as progress:
        if beam is None:
            num_rejects = 0
            for shard in shards:
                before = progress.done
                own = dataclasses.replace(shard, num_rejected=num_rejects)
                report = write_shard(spec, own, advance=progress.advance)
                num_rejects += len(report.rejects)
                progress.advance(before + shard.num_rows - progress.done, rejected=len(report.rejects))
        else:
            with _watched(spec, shards, progress):
                _run_on_beam(spec, shards, beam)
    return _finish(spec, shards)


def _plan(spec: BuildSpec, source: Source) -> list[Shard]:
    """Cuts the rows into shards and stores the rows of each on disk for its writer."""
    plan = spec.scratch / "plan.json"
    if not plan.is_file():
        shutil.rmtree(spec.folder, ignore_errors=True)
        spec.scratch.mkdir(parents=True)
        waiting: dict[str, list[SourceRow]] = {}
        sizes: dict[str, list[int]] = {}
        for row in source.rows:
            rows = waiting.setdefault(row.split, [])
            rows.append(row)
            if len(rows) == spec.rows_per_shard:
                _keep_plan(spec, row.split, waiting.pop(row.split), sizes)
        for split, rows in waiting.items():
            _keep_plan(spec, split, rows, sizes)
        _write_whole(plan, json.dumps(sizes))
    sizes = json.loads(plan.read_text("utf-8"))
    num_rows = sum(map(sum, sizes.values()))
    return [
        Shard(
            split=split,
            number=number,
            num_shards=len(own),
            num_rows=size,
            num_planned=num_rows,
        )
        for split, own in sizes.items()
        for number, size in enumerate(own)
    ]


def _keep_plan(spec: BuildSpec, split: str, rows: list[SourceRow], sizes: dict[str, list[int]]) -> None:
    own = sizes.setdefault(split, [])
    (spec.scratch / f"{split}-{len(own):05d}.plan").write_bytes(pickle.dumps(rows))
    own.append(len(rows))


def _write_whole(path: Path, text: str) -> None:
    """Writes a file atomically: readers see the whole file or none."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)


def write_shard(
    spec: BuildSpec, shard: Shard, *, advance: Callable[[int], None] = lambda _: None
) -> ShardReport:
    """Writes one shard, or returns the report of one already written. The same rows give the same bytes.

    Raises DataError where more rows are bad than the limit allows.
    """
    report_path = spec.scratch / f"{shard.stem}.json"
    if report_path.is_file():
        return ShardReport(**json.loads(report_path.read_text("utf-8")))
    rows: list[SourceRow] = pickle.loads((spec.scratch / f"{shard.stem}.plan").read_bytes())
    own = f"{os.getpid()}.partial"  # Beam may start a shard twice, where it takes the first worker for lost
    records_path = spec.folder / spec.shard_name(shard.split, shard.number, shard.num_shards)
    index_piece = spec.scratch / f"{shard.stem}.arrow"
    partial_records = spec.scratch / f"{shard.stem}.records.{own}"
    partial_index = spec.scratch / f"{shard.stem}.arrow.{own}"
    report = _write_rows(spec, shard, rows, partial_records, partial_index, advance)
    partial_records.replace(records_path)
    partial_index.replace(index_piece)
    report = dataclasses.replace(report, record_bytes=records_path.stat().st_size)
    _write_whole(report_path, json.dumps(dataclasses.asdict(report)))
    return report


def _write_rows(
    spec: BuildSpec,
    shard: Shard,
    rows: Sequence[SourceRow],
    records_path: Path,
    index_piece: Path,
    advance: Callable[[int], None],
) -> ShardReport:
    from array_record.python.array_record_module import ArrayRecordWriter

    serialise = serialiser(spec.encoding)
    class_numbers = {name: number for number, name in enumerate(spec.class_names)}
    licences: collections.Counter[str] = collections.Counter()
    licence_numbers: dict[str, int] = {}
    rejects: list[dict[str, str]] = []
    notes: collections.Counter[str] = collections.Counter()
    digest = hashlib.sha256()
    lengths: list[int] = []
    num_records = num_captions = num_negatives = num_labels = 0
    writer = ArrayRecordWriter(str(records_path), WRITER_OPTIONS)
    try:
        with IndexWriter(index_piece) as index:
            for row, example in map_in_order(functools.partial(_try_example, spec), rows):
                advance(1)
                if isinstance(example, DataError):
                    rejects.append({"path": row.source, "reason": str(example)})
                    num_rejected = shard.num_rejected + len(rejects)
                    if num_rejected > spec.max_bad_fraction * shard.num_planned:
                        raise _too_many(spec, shard.num_planned, num_rejected, rejects)
                    continue
                labels = [class_numbers[name] for name in row.labels]
                entry = {
                    "id": row.id,
                    "captions": list(example.captions),
                    "negatives": list(example.negatives),
                    "labels": labels,
                    "num_samples": example.num_samples,
                    "record": num_records,
                    "licence": licence_numbers.setdefault(row.licence, len(licence_numbers)),
                    "source_sha256": bytes.fromhex(example.source_sha256) or None,
                }
                index.add(entry)
                seen = [row.id, example.num_samples, labels, entry["captions"], entry["negatives"]]
                digest.update(json.dumps([*seen, row.licence, example.source_sha256]).encode() + b"\n")
                for piece, pcm in enumerate(example.pieces()):
                    writer.write(
                        serialise(
                            row, example, labels, piece, encode_audio(pcm, spec.encoding, spec.sample_rate_hz)
                        )
                    )
                    num_records += 1
                lengths.append(example.num_samples)
                notes.update(example.notes)
                licences[row.licence] += 1
                num_captions += len(example.captions)
                num_negatives += len(example.negatives)
                num_labels += len(labels)
    finally:
        writer.close()
    return ShardReport(
        num_rows=len(lengths),
        num_records=num_records,
        record_bytes=0,
        num_samples=sum(lengths),
        shortest_samples=min(lengths, default=0),
        longest_samples=max(lengths, default=0),
        num_captions=num_captions,
        num_negatives=num_negatives,
        num_labels=num_labels,
        licences={licence: licences[licence] for licence in licence_numbers},
        rejects=rejects,
        notes=dict(notes),
        fingerprint=digest.hexdigest(),
    )


def _try_example(spec: BuildSpec, row: SourceRow) -> Example | DataError:
    try:
        return make_example(row, spec.sample_rate_hz)
    except DataError as error:
        return error


def _too_many(
    spec: BuildSpec, num_planned: int, num_rejected: int, rejects: Sequence[Mapping[str, str]]
) -> DataError:
    path = spec.folder / REJECTS_FILE
    path.write_text("".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects), "utf-8")
    return DataError(
        f"{spec.name}: {num_rejected} of {num_planned} recordings are bad so far, more than max_bad_fraction="
        f"{spec.max_bad_fraction} allows; the last is {rejects[-1]['path']}: {rejects[-1]['reason']}; {path} has "
        "those of this shard"
    )


def features(encoding: Encoding) -> Any:
    """Returns the TFDS features of a record."""
    import tensorflow_datasets as tfds

    text = tfds.features.Text
    audio = (
        tfds.features.Tensor(
            shape=(None,), dtype=np.int16, encoding="bytes", doc="mono PCM; value / 32768 is the waveform"
        )
        if encoding == "pcm"
        else tfds.features.Tensor(shape=(), dtype=np.bytes_, doc="a FLAC file, mono, 16 bit")
    )
    return tfds.features.FeaturesDict(
        {
            "id": text(doc="unique in the data set"),
            "audio": audio,
            "captions": tfds.features.Sequence(text()),
            "negatives": tfds.features.Sequence(text(), doc="wrong captions"),
            "labels": tfds.features.Sequence(np.int32, doc="indices into class_names, of every class"),
            "licence": text(),
            "piece": tfds.features.Scalar(np.int32, doc="number of the piece of a long recording, from 0"),
            "source_sha256": text(doc="SHA-256 of the source file, or empty"),
        }
    )


def serialiser(encoding: Encoding) -> Callable[[SourceRow, Example, Sequence[int], int, bytes], bytes]:
    """Returns a function that serialises a record deterministically, with its features in order of name."""
    load_tensorflow()
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    own = features(encoding)
    serializer = ExampleSerializer(own.get_serialized_info())

    def serialise(row: SourceRow, example: Example, labels: Sequence[int], piece: int, audio: bytes) -> bytes:
        encoded = own.encode_example(
            {
                "id": row.id,
                "audio": np.frombuffer(audio, "<i2") if encoding == "pcm" else audio,
                "captions": example.captions,
                "negatives": example.negatives,
                "labels": labels,
                "licence": row.licence,
                "piece": piece,
                "source_sha256": example.source_sha256,
            }
        )
        found: bytes = serializer.get_tf_example(encoded).SerializeToString(deterministic=True)
        return found

    return serialise


def _run_on_beam(spec: BuildSpec, shards: Sequence[Shard], options: str) -> None:
    """Writes the shards as elements of a Beam pipeline, which retries those that fail."""
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(
            "--beam needs Apache Beam, which is not installed; in a separate environment: "
            "pip install 'alm_jax[beam]'"
        ) from error
    with apache_beam.Pipeline(options=PipelineOptions(shlex.split(options))) as pipeline:
        _ = (
            pipeline
            | "shards" >> apache_beam.Create(list(shards))
            | "spread" >> apache_beam.Reshuffle()
            | "write" >> apache_beam.Map(functools.partial(_write_and_count, spec))
        )
    counted = pipeline.result.metrics().query()["counters"]
    totals = sorted(
        (c.key.metric.name, c.committed or 0) for c in counted if c.key.metric.namespace == _COUNTERS
    )
    logger.info("Apache Beam wrote: %s", ", ".join(f"{name} {total:,}" for name, total in totals))


@contextlib.contextmanager
def _watched(spec: BuildSpec, shards: Sequence[Shard], progress: Progress) -> Iterator[None]:
    """Counts the shards written by all workers while a pipeline runs."""
    done = threading.Event()
    waiting = list(shards)

    def count() -> None:
        for shard in [own for own in waiting if (spec.scratch / f"{own.stem}.json").is_file()]:
            waiting.remove(shard)
            progress.advance(shard.num_rows, rejected=len(write_shard(spec, shard).rejects))

    def watch() -> None:
        while not done.wait(1.0):
            count()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        count()


def _write_and_count(spec: BuildSpec, shard: Shard) -> int:
    """Writes a shard in a worker of Beam, and updates Beam's counters."""
    from apache_beam.metrics import Metrics

    report = write_shard(spec, shard)
    Metrics.counter(_COUNTERS, "recordings").inc(report.num_rows)
    Metrics.counter(_COUNTERS, "rejected").inc(len(report.rejects))
    Metrics.counter(_COUNTERS, "record bytes").inc(report.record_bytes)
    return report.num_rows


def _finish(spec: BuildSpec, shards: Sequence[Shard]) -> Manifest:
    """Joins what the shards wrote, and writes the manifest, which completes the data set."""
    splits: dict[str, SplitManifest] = {}
    notes: collections.Counter[str] = collections.Counter()
    num_rejects = 0
    with open(spec.folder / REJECTS_FILE, "w", encoding="utf-8") as rejects:
        for split in dict.fromkeys(shard.split for shard in shards):
            own = [shard for shard in shards if shard.split == split]
            reports = [
                write_shard(spec, shard) for shard in own
            ]  # each shard is written: this reads its report
            for report in reports:
                notes.update(report.notes)
                num_rejects += len(report.rejects)
                rejects.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in report.rejects)
            splits[split] = _finish_split(spec, own, reports)
    num_planned = sum(shard.num_rows for shard in shards)
    if num_rejects > spec.max_bad_fraction * num_planned:
        raise DataError(
            f"{spec.name}: {num_rejects} of {num_planned} recordings are bad, more than max_bad_fraction="
            f"{spec.max_bad_fraction} allows; {spec.folder / REJECTS_FILE} says which, and why"
        )
    manifest = Manifest(
        name=spec.name,
        sample_rate_hz=spec.sample_rate_hz,
        encoding=spec.encoding,
        class_names=spec.class_names,
        signature=spec.signature,
        notes=dict(sorted(notes.items())),
        splits=splits,
    )
    return manifest


def _finish_split(spec: BuildSpec, shards: Sequence[Shard], reports: Sequence[ShardReport]) -> SplitManifest:
    split = shards[0].split
    num_planned = sum(shard.num_rows for shard in shards)
    num_rows = sum(report.num_rows for report in reports)
    if not num_rows:
        raise DataError(
            f"{spec.name}: all {num_planned} recordings of split {split!r} were rejected; "
            f"{spec.folder / REJECTS_FILE} says why"
        )
    licences: collections.Counter[str] = collections.Counter()
    for report in reports:
        licences.update(report.licences)
    numbers = {licence: number for number, licence in enumerate(licences)}
    path = index_path(spec.folder, split)
    path.parent.mkdir(exist_ok=True)
    ids, rows = hashlib.sha256(), hashlib.sha256()
    first_record = 0
    with IndexWriter(path) as index:
        for shard, report in zip(shards, reports, strict=True):
            number_of = np.array([numbers[licence] for licence in report.licences], np.int16)
            piece = spec.scratch / f"{shard.stem}.arrow"
            with pa.memory_map(str(piece)) as file, pa.ipc.open_file(file) as reader:
                for number in range(reader.num_record_batches):
                    batch = _renumber(reader.get_batch(number), first_record, number_of)
                    index.extend([batch])
                    for name in batch.column("id").to_pylist():
                        ids.update(name.encode() + b"\n")
            first_record += report.num_records
            rows.update(report.fingerprint.encode())
    missing = sum(reject["reason"].startswith("missing") for report in reports for reject in report.rejects)
    return SplitManifest(
        num_planned=num_planned,
        num_rows=num_rows,
        num_missing=missing,
        num_undecodable=num_planned - num_rows - missing,
        seconds=sum(report.num_samples for report in reports) / spec.sample_rate_hz,
        shortest_sec=min(r.shortest_samples for r in reports if r.num_rows) / spec.sample_rate_hz,
        longest_sec=max(r.longest_samples for r in reports) / spec.sample_rate_hz,
        num_captions=sum(report.num_captions for report in reports),
        num_negatives=sum(report.num_negatives for report in reports),
        num_labels=sum(report.num_labels for report in reports),
        licences=dict(licences),
        ids_sha256=ids.hexdigest(),
        fingerprint=rows.hexdigest(),
        index_bytes=path.stat().st_size,
        shards=tuple(spec.shard_name(split, shard.number, shard.num_shards) for shard in shards),
        shard_lengths=tuple(report.num_records for report in reports),
        shard_bytes=tuple(report.record_bytes for report in reports),
    )


def _renumber(batch: pa.RecordBatch, first_record: int, licence_of: Int[np.ndarray, " L"]) -> pa.RecordBatch:
    """Converts a batch of a shard's piece of the index to the form of the whole index."""
    columns = {name: batch.column(name) for name in SCHEMA.names}
    columns["record"] = pa.array(columns["record"].to_numpy() + first_record)
    columns["licence"] = pa.array(licence_of[columns["licence"].to_numpy()])
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=SCHEMA)


def complete(spec: BuildSpec, manifest: Manifest) -> None:
    """Writes the manifest and removes the scratch files."""
    _write_whole(spec.folder / MANIFEST_FILE, manifest.to_json())
    shutil.rmtree(spec.scratch, ignore_errors=True)


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], num_threads: int | None = None
) -> Iterator[tuple[Item, Result]]:
    """Yields (item, function(item)) in order, computed by threads that run a bounded number of items ahead."""
    num_threads = num_threads or min(32, os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        pending: collections.deque[tuple[Item, concurrent.futures.Future[Result]]] = collections.deque()
        try:
            for item in items:
                pending.append((item, pool.submit(function, item)))
                if len(pending) > 2 * num_threads:
                    done, future = pending.popleft()
                    yield done, future.result()
            while pending:
                done, future = pending.popleft()
                yield done, future.result()
        finally:
            for _, future in pending:
                future.cancel()
