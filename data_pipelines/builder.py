"""The TFDS builder of every data set here: records of PCM with captions, and counted rejects.

A data set yields rows (``data_pipelines.dataset``, ``data_pipelines.source``); the rest is here. Examples are made
by several threads, in order; those that cannot be made are counted, with their reason, and too many of them stop the
build.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from alm_jax.errors import DataError
from data_pipelines.captions import normalise_caption
from data_pipelines.dataset import DatasetConfig
from data_pipelines.source import Source, SourceRow

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A row that was read."""

    pcm: Int[np.ndarray, " S"]
    captions: Sequence[str]
    """Cleaned, at least one."""
    negatives: Sequence[str]
    source_sha256: str
    notes: Sequence[str]
    """What was changed on the way, to be counted."""


def make_example(row: SourceRow, sample_rate_hz: int) -> Example:
    """Reads a row's recording and cleans its captions. Raises DataError, the reason, where it must be left out."""
    captions = [caption for caption in map(normalise_caption, row.captions) if caption]
    if not captions:
        raise DataError("empty caption")
    recording = row.audio.read(sample_rate_hz, start_sec=row.start_sec, end_sec=row.end_sec)
    # One that says the same as a right caption would teach the opposite.
    negatives = [text for text in map(normalise_caption, row.negatives) if text and text not in captions]
    dropped = ["empty captions dropped"] * (len(row.captions) - len(captions))
    return Example(
        pcm=recording.pcm,
        captions=captions,
        negatives=negatives,
        source_sha256=recording.sha256,
        notes=[*row.notes, *recording.notes, *dropped],
    )


@dataclasses.dataclass(kw_only=True)
class CaptionedAudioConfig(tfds.core.BuilderConfig):
    """A TFDS config that carries the settings of the data set as this project writes them."""

    settings: Any = None
    sample_rate_hz: int = 16_000
    max_bad_fraction: float = 0.0
    source: Source | None = None
    """What ``settings.read()`` found, where it was called already."""


def config_name(settings: DatasetConfig, signature: str, sample_rate_hz: int) -> str:
    """A name that differs where the content would: a word for people, and a digest of everything."""
    content = [dataclasses.asdict(settings), sample_rate_hz, signature]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    return f"{settings.short_name()}-{sample_rate_hz}hz-{digest}"


@functools.cache
def builder_class(kind: type[DatasetConfig]) -> type["CaptionedAudioBuilder"]:
    """The TFDS builder of a data set, of its name and with its documentation."""
    return type(
        kind.title(), (CaptionedAudioBuilder,), {"__doc__": kind.__doc__, "__module__": kind.__module__}
    )


class CaptionedAudioBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Splits of ``{id, audio (int16 PCM, mono), captions, negatives, label, labels, licence, source_sha256}``.

    After ``download_and_prepare``: ``rejects`` lists what was left out and why, ``counts`` what was
    changed on the way, and ``info.metadata`` has the class names and the sampling rate.
    """

    VERSION = tfds.core.Version("1.2.0")
    url_infos = None  # nothing is downloaded: TFDS need not look for checksums beside this file

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(file_format="array_record", **kwargs)
        self.rejects: list[dict[str, str]] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.num_planned = 0
        self.class_numbers: dict[str, int] = {}

    @property
    def sample_rate_hz(self) -> int:
        """Of the records."""
        return self.builder_config.sample_rate_hz

    @functools.cached_property
    def data_source(self) -> Source:
        """The rows."""
        return self.builder_config.source or self.builder_config.settings.read()

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        features = tfds.features.FeaturesDict(
            {
                "id": text(doc="unique in its split"),
                "audio": tfds.features.Tensor(
                    shape=(None,),
                    dtype=np.int16,
                    encoding="bytes",
                    doc="mono PCM; value / 32768 is the waveform",
                ),
                "captions": tfds.features.Sequence(text()),
                "negatives": tfds.features.Sequence(text(), doc="captions that are wrong"),
                "label": tfds.features.Scalar(
                    np.int32, doc="index into class_names, -1 where there is none, or more than one"
                ),
                "labels": tfds.features.Sequence(np.int32, doc="indices into class_names, of every class"),
                "licence": text(),
                "source_sha256": text(doc="of the file it was made from, or empty"),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=features,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(sample_rate_hz=self.sample_rate_hz),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, Any]]]:
        source = self.data_source
        plan: dict[str, list[SourceRow]] = {}
        for row in source.rows:
            plan.setdefault(row.split, []).append(row)
        self.num_planned = len(source.rows)
        self.class_numbers = {name: number for number, name in enumerate(source.class_names)}
        self.info.metadata["class_names"] = list(source.class_names)
        self.info.metadata["num_planned"] = self.num_planned
        return {split: self._generate_examples(split, rows) for split, rows in plan.items()}

    def _generate_examples(self, split: str, rows: Sequence[SourceRow]) -> Iterator[tuple[str, Any]]:
        num_good = 0
        with _progress(f"{self.name} {split}", len(rows)) as advance:
            for row, outcome in map_in_order(self._try_example, rows):
                advance()
                if isinstance(outcome, DataError):
                    self._reject(row, str(outcome))
                    continue
                num_good += 1
                self.counts.update(outcome.notes)
                yield row.id, self._record(row, outcome)
        if not num_good:
            raise DataError(f"{self.name}: all {len(rows)} recordings of split {split!r} were rejected")

    def _record(self, row: SourceRow, example: Example) -> Mapping[str, Any]:
        labels = [self.class_numbers[name] for name in row.labels]
        return {
            "id": row.id,
            "audio": example.pcm,
            "captions": example.captions,
            "negatives": example.negatives,
            "label": labels[0] if len(labels) == 1 else -1,
            "labels": labels,
            "licence": row.licence,
            "source_sha256": example.source_sha256,
        }

    def _try_example(self, row: SourceRow) -> Example | DataError:
        try:
            return make_example(row, self.sample_rate_hz)
        except DataError as error:
            return error

    def _reject(self, row: SourceRow, reason: str) -> None:
        self.rejects.append({"path": row.source, "reason": reason})
        if len(self.rejects) > self.builder_config.max_bad_fraction * self.num_planned:
            raise DataError(
                f"{self.name}: {len(self.rejects)} of {self.num_planned} recordings are bad so far, "
                f"more than max_bad_fraction={self.builder_config.max_bad_fraction} allows; "
                f"the last is {row.source}: {reason}"
            )


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], num_threads: int | None = None
) -> Iterator[tuple[Item, Result]]:
    """(item, function(item)) in order, made by threads that run a bounded number of items ahead."""
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


@contextlib.contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, nothing elsewhere; gives the function that advances it by one."""
    columns = TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
