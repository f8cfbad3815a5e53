"""The TFDS builder that every data set here extends: records of PCM with captions, and counted rejects.

A data set says which examples there are (``plan``) and how one is made (``make_example``, which raises
DataError where it cannot be). The rest is here: examples are made by several threads, in order; those
that cannot be made are counted, with their reason, and too many of them stop the build.
"""

import abc
import collections
import concurrent.futures
import contextlib
import dataclasses
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

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_RECORD_SEC = 60.0
"""Longest recording that is stored; of a longer one the start is kept, and the log says how many."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """An example that is to be made."""

    id: str
    source: str
    """What rejects.jsonl calls it: the path of a file, relative to the data set's folder."""
    details: Any
    """Whatever ``make_example`` needs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """An example that was made."""

    pcm: Int[np.ndarray, " S"]
    captions: Sequence[str]
    negatives: Sequence[str] = ()
    """Captions that are nearly right and wrong, where the data set has such."""
    label: int = -1
    licence: str = ""
    source_sha256: str = ""
    notes: Sequence[str] = ()
    """What was changed on the way, to be counted: ``recordings clipped at full scale``."""


@dataclasses.dataclass(kw_only=True)
class CaptionedAudioConfig(tfds.core.BuilderConfig):
    """A TFDS config that carries the settings of the data set as this project writes them."""

    settings: Any = None
    sample_rate_hz: int = 16_000
    max_bad_fraction: float = 0.0


class CaptionedAudioBuilder(tfds.core.GeneratorBasedBuilder, abc.ABC):
    """Splits of ``{id, audio (int16 PCM, mono), captions, negatives, label, licence, source_sha256}``.

    After ``download_and_prepare``: ``rejects`` lists what was left out and why, ``counts`` what was
    changed on the way, and ``info.metadata`` has the class names and the sampling rate.
    """

    VERSION = tfds.core.Version("1.1.0")
    url_infos = None  # nothing is downloaded: TFDS need not look for checksums beside this file

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(file_format="array_record", **kwargs)
        self.rejects: list[dict[str, str]] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.num_planned = 0

    @classmethod
    def config_name(cls, settings: Any, sample_rate_hz: int) -> str:
        """A name that differs where the content would: a word for people, and a digest of everything."""
        content = [dataclasses.asdict(settings), sample_rate_hz, cls.source_signature(settings)]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
        return f"{cls.short_name(settings)}-{sample_rate_hz}hz-{digest}"

    @classmethod
    def check(cls, settings: Any, sample_rate_hz: int) -> None:
        """Raises UserError for settings that cannot be, before anything is written."""

    @classmethod
    @abc.abstractmethod
    def short_name(cls, settings: Any) -> str:
        """The settings in a word or two."""

    @classmethod
    @abc.abstractmethod
    def source_signature(cls, settings: Any) -> str:
        """Something that changes when the files do that the data set is made from."""

    @property
    def settings(self) -> Any:
        return self.builder_config.settings

    @property
    def sample_rate_hz(self) -> int:
        return self.builder_config.sample_rate_hz

    @abc.abstractmethod
    def plan(self) -> Mapping[str, Sequence[Planned]]:
        """The examples of every split, in the order in which they are kept."""

    @abc.abstractmethod
    def class_names(self) -> Sequence[str]:
        """Names of the classes that labels index; empty where the data set has none."""

    @abc.abstractmethod
    def make_example(self, planned: Planned) -> Example:
        """Makes one example, in any thread; raises DataError, the reason, where it must be left out."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(doc="unique in its split"),
                "audio": tfds.features.Tensor(
                    shape=(None,),
                    dtype=np.int16,
                    encoding="bytes",
                    doc="mono PCM; value / 32768 is the waveform",
                ),
                "captions": tfds.features.Sequence(tfds.features.Text()),
                "negatives": tfds.features.Sequence(tfds.features.Text(), doc="captions that are wrong"),
                "label": tfds.features.Scalar(np.int32, doc="index into class_names, -1 where there is none"),
                "licence": tfds.features.Text(),
                "source_sha256": tfds.features.Text(doc="of the file it was made from, or empty"),
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
        plan = self.plan()
        self.num_planned = sum(len(items) for items in plan.values())
        self.info.metadata["class_names"] = list(self.class_names())
        self.info.metadata["num_planned"] = self.num_planned
        return {split: self._generate_examples(split, items) for split, items in plan.items()}

    def _generate_examples(self, split: str, items: Sequence[Planned]) -> Iterator[tuple[str, Any]]:
        num_good = 0
        with _progress(f"{self.name} {split}", len(items)) as advance:
            for planned, outcome in map_in_order(self._try_example, items):
                advance()
                if isinstance(outcome, DataError):
                    self._reject(planned, str(outcome))
                    continue
                num_good += 1
                self.counts.update(outcome.notes)
                fields = ("captions", "negatives", "label", "licence", "source_sha256")
                record = {name: getattr(outcome, name) for name in fields}
                yield planned.id, record | {"id": planned.id, "audio": outcome.pcm}
        if not num_good:
            raise DataError(f"{self.name}: all {len(items)} recordings of split {split!r} were rejected")

    def _try_example(self, planned: Planned) -> Example | DataError:
        try:
            example = self.make_example(planned)
            captions = [caption for caption in map(normalise_caption, example.captions) if caption]
            if not captions:
                raise DataError("empty caption")
            if not example.pcm.size:
                raise DataError("empty: no samples")
            # One that says the same as a right caption would teach the opposite.
            negatives = [
                text for text in map(normalise_caption, example.negatives) if text and text not in captions
            ]
            notes = [*example.notes, *["empty captions dropped"] * (len(example.captions) - len(captions))]
            return dataclasses.replace(example, captions=captions, negatives=negatives, notes=notes)
        except DataError as error:
            return error

    def _reject(self, planned: Planned, reason: str) -> None:
        self.rejects.append({"path": planned.source, "reason": reason})
        if len(self.rejects) > self.builder_config.max_bad_fraction * self.num_planned:
            raise DataError(
                f"{self.name}: {len(self.rejects)} of {self.num_planned} recordings are bad so far, "
                f"more than max_bad_fraction={self.builder_config.max_bad_fraction} allows; "
                f"the last is {planned.source}: {reason}"
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
