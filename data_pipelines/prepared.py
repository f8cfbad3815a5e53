"""A prepared data set, open for reading: its splits, classes, tokenizer and fingerprint."""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Tokenizer

from alm_jax.errors import UserError
from data_pipelines.config import DataConfig, FilterConfig, MixtureConfig
from data_pipelines.index import Column, Index
from data_pipelines.manifest import SplitManifest
from data_pipelines.prompts import Prompts, encode_prompt_config
from data_pipelines.records import Resampled
from data_pipelines.selection import Selection, captions_within


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Stretch:
    """Rows of one split of one data set: all, or those that a filter keeps."""

    name: str
    """Name of the split: ``digits/train`` in a mixture."""
    index: Index
    audio: Resampled
    manifest: SplitManifest
    label_of: Int[np.ndarray, " C"]
    """Number of each of the data set's classes in `Prepared.class_names`."""
    part: int = 0
    """Number of the mixture's part; 0 for a single data set."""
    kept: FilterConfig = FilterConfig()
    """The filter; captions that it drops are not read."""
    selection: Selection | None = None
    """Rows that the filter keeps; None: all."""
    by_length: tuple[Int[np.ndarray, " N"], ...] = ()
    """Places of the recordings of each of `DataConfig.duration_buckets`; empty without buckets, and in splits that are
    not trained on."""

    def __len__(self) -> int:
        return len(self.index) if self.selection is None else len(self.selection.rows)

    def rows(self, places: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        """Returns the rows of the index at these places of the stretch."""
        return places if self.selection is None else self.selection.rows[places].astype(np.int64)

    def captions(self, row: int) -> list[str]:
        """Returns the captions of a row of the index that the filter keeps."""
        found: list[str] = self.index.value("captions", row)
        return captions_within(found, self.kept) if self.kept.looks_at_captions else found

    def labels(self, row: int) -> list[int]:
        """Returns every class of a row of the index; none where it has none."""
        return [int(self.label_of[label]) for label in self.index.value("labels", row)]

    @property
    def licences(self) -> Mapping[str, int]:
        """Number of rows by licence."""
        return self.manifest.licences if self.selection is None else self.selection.licences

    @property
    def seconds(self) -> float:
        """Total length of the recordings, seconds."""
        if self.selection is None:
            return self.manifest.seconds
        return self.selection.num_samples / self.audio.records.sample_rate_hz


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Examples of one split, or of several joined with ``+``, in the order of their records.

    Training finds its rows one by one (`find_rows`); the columns ``ids``, ``all_captions`` and others read a row on
    access; ``labels``, ``num_samples`` and ``source`` are arrays of the whole split, for evaluations.
    """

    name: str
    stretches: tuple[Stretch, ...]

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def num_examples(self) -> int:
        """Number of recordings."""
        return len(self)

    @functools.cached_property
    def starts(self) -> Int[np.ndarray, " P1"]:
        """First place of each stretch, and the end of the last."""
        return np.array([0, *itertools.accumulate(map(len, self.stretches))], np.int64)

    def locate(self, indices: Int[np.ndarray, " B"]) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
        """Returns the stretch of each example, and its row in the stretch's index."""
        wanted = np.asarray(indices, np.int64)
        numbers = np.searchsorted(self.starts, wanted, side="right") - 1
        rows = np.empty(len(wanted), np.int64)
        for number in np.unique(numbers).tolist():
            here = numbers == number
            rows[here] = self.stretches[number].rows(wanted[here] - self.starts[number])
        return numbers, rows

    def lengths(self, indices: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        """Returns the lengths of recordings at the model's rate, samples."""
        found = np.empty(len(indices), np.int64)
        for stretch, here, rows in self._by_stretch(indices):
            found[here] = stretch.audio.length_of(stretch.index.numbers("num_samples", rows))
        return found

    def parts(self, indices: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        """Returns the number of the mixture's part that each example is of; zeros for a single data set."""
        of_stretch = np.array([stretch.part for stretch in self.stretches], np.int32)
        return of_stretch[np.searchsorted(self.starts, indices, side="right") - 1]

    def find_rows(self, indices: Int[np.ndarray, " B"]) -> list[tuple[Stretch, int]]:
        """Returns the stretch of an example, and its row in the stretch's index."""
        numbers, rows = self.locate(indices)
        return [(self.stretches[n], row) for n, row in zip(numbers.tolist(), rows.tolist(), strict=True)]

    def labels_of(self, index: int) -> tuple[int, ...]:
        """Returns every class of an example; none where it has none."""
        stretch, row = self._find(index)
        return tuple(stretch.labels(row))

    def captions(self, index: int) -> list[str]:
        """Returns every caption of the example."""
        stretch, row = self._find(index)
        return stretch.captions(row)

    def negatives(self, index: int) -> tuple[str, ...]:
        """Returns the wrong but similar captions of the example; none where the data set has none."""
        return tuple(self._value("negatives", index))

    def read_windows(
        self, indices: Int[np.ndarray, " B"], starts: Int[np.ndarray, " B"], length: int
    ) -> Iterator[Int[np.ndarray, " S"]]:
        """Reads ``length`` samples of each recording from its start on, at the model's rate, fewer where it ends:
        int16 PCM.

        DataError where a record is damaged.
        """
        audio: list[Resampled | None] = [None] * len(indices)
        records, num_samples = np.empty(len(indices), np.int64), np.empty(len(indices), np.int64)
        for stretch, here, rows in self._by_stretch(indices):
            records[here] = stretch.index.numbers("record", rows)
            num_samples[here] = stretch.index.numbers("num_samples", rows)
            for place in np.flatnonzero(here).tolist():
                audio[place] = stretch.audio
        where = zip(audio, records.tolist(), num_samples.tolist(), starts.tolist(), strict=True)
        for own, record, size, start in where:
            assert own is not None
            yield own.read(record, size, start, length)

    def read_pcm(self, indices: Sequence[int]) -> list[Int[np.ndarray, " S"]]:
        """Reads int16 PCM of whole recordings, at the model's rate; DataError where a record is damaged."""
        wanted = np.asarray(indices, np.int64)
        return list(self.read_windows(wanted, np.zeros_like(wanted), np.iinfo(np.int64).max))

    def _by_stretch(
        self, indices: Int[np.ndarray, " B"]
    ) -> Iterator[tuple[Stretch, Bool[np.ndarray, " B"], Int[np.ndarray, " b"]]]:
        """Yields each stretch that has some of the examples, which examples those are, and their rows in its
        index."""
        stretches, rows = self.locate(indices)
        for number in np.unique(stretches).tolist():
            here = stretches == number
            yield self.stretches[number], here, rows[here]

    def _find(self, index: int) -> tuple[Stretch, int]:
        numbers, rows = self.locate(np.array([index]))
        return self.stretches[int(numbers[0])], int(rows[0])

    def _value(self, column: str, index: int) -> Any:
        stretch, row = self._find(index)
        return stretch.index.value(column, row)

    def _licence_of(self, index: int) -> str:
        stretch, row = self._find(index)
        return list(stretch.manifest.licences)[stretch.index.value("licence", row)]

    def _sha256_of(self, index: int) -> str:
        digest = self._value("source_sha256", index)
        return digest.hex() if digest else ""

    @property
    def ids(self) -> Column[str]:
        """Id of each example, unique in its data set."""
        return Column(len(self), functools.partial(self._value, "id"))

    @property
    def all_captions(self) -> Column[list[str]]:
        """Captions of each example."""
        return Column(len(self), self.captions)

    @property
    def all_negatives(self) -> Column[tuple[str, ...]]:
        """Wrong but similar captions of each example."""
        return Column(len(self), self.negatives)

    @property
    def all_labels(self) -> Column[tuple[int, ...]]:
        """Classes of each example."""
        return Column(len(self), self.labels_of)

    @property
    def licences(self) -> Column[str]:
        """Licence of each example."""
        return Column(len(self), self._licence_of)

    @property
    def source_sha256(self) -> Column[str]:
        """SHA-256 of each example's source file; '' where there is none."""
        return Column(len(self), self._sha256_of)

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, " N"]:
        """Class of each example, -1 where it has none or several; an array of the whole split."""
        return self.single_labels(np.arange(len(self)))

    def single_labels(self, indices: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        """Returns the class of these examples, -1 where they have none or several."""
        found = np.full(len(indices), -1, np.int32)
        for stretch, here, rows in self._by_stretch(indices):
            if stretch.manifest.num_labels:
                own = stretch.index.single_values("labels", rows)
                found[here] = np.where(own >= 0, stretch.label_of[own], -1)
        return found

    @functools.cached_property
    def num_samples(self) -> Int[np.ndarray, " N"]:
        """Length of each example at the model's rate, samples; an array of the whole split."""
        return self.lengths(np.arange(len(self)))

    @functools.cached_property
    def source(self) -> Int[np.ndarray, " N"]:
        """Number of the mixture's part of each example; an array of the whole split."""
        return self.parts(np.arange(len(self)))

    @property
    def seconds(self) -> float:
        """Total length of the recordings, seconds."""
        return sum(stretch.seconds for stretch in self.stretches)

    @property
    def num_captions(self) -> int:
        """Number of captions of all recordings, including those that a filter drops."""
        return sum(stretch.manifest.num_captions for stretch in self.stretches)

    @property
    def licence(self) -> str:
        """Licences of the examples, with their counts: ``CC-BY (150), CC0 (90)``."""
        return describe_licences(stretch.licences for stretch in self.stretches)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A data set with the settings of ``config``; made by ``data_pipelines.prepare.prepare``."""

    config: DataConfig
    sample_rate_hz: int
    """Sampling rate of the model, Hz."""
    class_names: tuple[str, ...]
    """Class names, which labels index; empty where there are no classes."""
    num_rejected: int
    """Number of recordings that were left out; ``rejects.jsonl`` in each of ``folders`` lists them with the
    reason."""
    tokenizer: Tokenizer
    splits: Mapping[str, Split]
    """The single splits; ``split`` joins them."""
    folders: tuple[Path, ...]
    """Local folders of the prepared data sets, one for each part of a mixture."""
    joined: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Names for several splits joined with ``+``: a mixture's ``train`` and ``test``."""

    def split(self, name: str) -> Split:
        """Returns a split, or several joined with ``+``; UserError for an unknown name."""
        return join_splits(self.splits, name, self.joined)

    @property
    def num_sources(self) -> int:
        """Number of parts of the mixture; 0 for a single data set."""
        return len(self.config.dataset.parts) if isinstance(self.config.dataset, MixtureConfig) else 0

    @property
    def num_source_samples(self) -> int:
        """S of the batch contract: samples of a recording on the device."""
        return round(self.config.window_sec * self.sample_rate_hz)

    @property
    def licences(self) -> dict[str, str]:
        """Licences of the training data with their counts, by the name of the data set (``Esc50``)."""
        train, dataset = self.split(self.config.train_split), self.config.dataset
        sets = [part.dataset for part in dataset.parts] if isinstance(dataset, MixtureConfig) else [dataset]
        by_kind: dict[str, list[Mapping[str, int]]] = {}
        for stretch in train.stretches:
            by_kind.setdefault(sets[stretch.part].title(), []).append(stretch.licences)
        return {kind: describe_licences(licences) for kind, licences in by_kind.items()}

    @functools.cached_property
    def prompts(self) -> tuple[Prompts, ...]:
        """Encodes the prompts of each of `DataConfig.prompts`. Raises UserError as `encode_prompts`."""
        length = self.config.prompt_length
        return tuple(encode_prompt_config(self.tokenizer, prompt, length) for prompt in self.config.prompts)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what a run reads: examples of both splits in order, classes, settings, tokenizer, prompts.

        No row is read for it: each split's fingerprint was computed when it was built.
        """
        config = self.config
        lines: list[Any] = [
            [config.window_sec, self.sample_rate_hz, config.tokenizer.max_length, config.num_negatives],
            [self.class_names, self.tokenizer.to_str()],
            [dataclasses.asdict(prompt) for prompt in config.prompts],
        ]
        if isinstance(config.dataset, MixtureConfig):
            lines += [
                config.dataset.mode,
                config.dataset.temperature,
                [[part.name, part.weight] for part in config.dataset.parts],
            ]
        for name in (config.train_split, config.eval_split):
            for stretch in self.split(name).stretches:
                records = stretch.audio.records
                lines.append(
                    [
                        *(name, stretch.name, stretch.part, stretch.manifest.fingerprint, len(stretch)),
                        *(records.sample_rate_hz, records.encoding, dataclasses.asdict(stretch.kept)),
                    ]
                )
        return hashlib.sha256("\n".join(map(json.dumps, lines)).encode()).hexdigest()


def describe_licences(counts: Iterable[Mapping[str, int]]) -> str:
    """Returns each licence with the number of its examples, the most frequent first."""
    total: collections.Counter[str] = collections.Counter()
    for licences in counts:
        total.update(licences)
    ordered = sorted(total, key=lambda licence: (-total[licence], licence))
    return ", ".join(f"{licence or 'unknown'} ({total[licence]})" for licence in ordered)


def join_splits(splits: Mapping[str, Split], name: str, joined: Mapping[str, str] | None = None) -> Split:
    """Returns the examples of the splits that ``name`` joins with ``+``, one after the other.

    ``joined`` has names for several of ``splits``. Raises UserError for an unknown split, or one named twice.
    """
    joined = joined or {}
    written = [part.strip() for part in name.split("+")]
    names = [single for part in written for single in joined.get(part, part).split("+")]
    for part in names:
        if part not in splits:
            known = ", ".join([*sorted(joined), *sorted(splits)])
            raise UserError(f"there is no split {part!r}; the data set has {known}")
    if len(set(names)) != len(names):
        raise UserError(f"split {name!r} names a part twice")
    return Split("+".join(names), tuple(itertools.chain(*(splits[part].stretches for part in names))))
