"""A data set that is ready to be read: its splits, its classes, its tokenizer, its fingerprint."""

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
import tensorflow_datasets as tfds
from jaxtyping import Int
from tokenizers import Tokenizer

from alm_jax.errors import DataError, UserError
from data_pipelines.config import DataConfig, MixtureConfig
from data_pipelines.prompts import Prompts, encode_prompt_config
from data_pipelines.tensorflow_cpu import load_tensorflow

INDEX_FILE = "examples.jsonl"
"""Beside the records of a data set: ``{"split", "id", "captions", ...}`` of each, in order, a line each."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Records:
    """The records of one split on disk."""

    folder: Path
    """The TFDS data set that has them."""
    name: str
    """Of the split, there."""
    num_examples: int

    def read_pcm(self, indices: Sequence[int]) -> list[Int[np.ndarray, " S"]]:
        """int16 PCM of the examples; DataError where a record is damaged."""
        try:
            return [record["audio"] for record in self._source.__getitems__(list(indices))]
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise DataError(
                f"a record of {self.name} in {self.folder} is damaged ({error}); "
                "delete that folder, and it is built again"
            ) from error

    @functools.cached_property
    def _source(self) -> Any:
        load_tensorflow()  # before TFDS does, to set it up as this project does
        source = tfds.builder_from_directory(self.folder).as_data_source(self.name)
        if len(source) != self.num_examples:
            raise DataError(
                f"{self.folder}: {len(source)} records of {self.name}, its index has {self.num_examples}"
            )
        return source


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Examples of one split, or of several joined with ``+``, in the order of their records."""

    name: str
    records: tuple[Records, ...]
    """Where the recordings lie, one after the other."""
    source: Int[np.ndarray, " N"]
    """Part of the mixture that each example is of; zeros where there is one data set alone."""
    ids: tuple[str, ...]
    labels: Int[np.ndarray, " N"]
    """Class of each; -1 where it has none, or several."""
    all_labels: tuple[tuple[int, ...], ...]
    """Every class of each."""
    num_samples: Int[np.ndarray, " N"]
    all_captions: tuple[tuple[str, ...], ...]
    all_negatives: tuple[tuple[str, ...], ...]
    """Captions of each that are wrong, and nearly right; empty where the data set has none."""
    licences: tuple[str, ...]
    source_sha256: tuple[str, ...]
    """Of the file that each example was made from; '' where there is none."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_examples(self) -> int:
        return len(self.ids)

    def captions(self, index: int) -> list[str]:
        """Every caption of the example."""
        return list(self.all_captions[index])

    @property
    def licence(self) -> str:
        """Licences of the examples, with their counts: ``CC-BY (150), CC0 (90)``."""
        return count_licences(self.licences)

    def describe(self, *, negatives: bool) -> Iterator[list[Any]]:
        """What identifies each example: all but its samples, whose last bit depends on the decoder.

        ``negatives``: whether its wrong captions are part of that, which they are where they are read.
        """
        for i, captions in enumerate(self.all_captions):
            several = self.all_labels[i] if len(self.all_labels[i]) > 1 else int(self.labels[i])
            numbers = [int(self.num_samples[i]), several]
            wrong = [self.all_negatives[i]] if negatives else []
            yield [self.ids[i], *numbers, captions, self.source_sha256[i], *wrong]

    def read_pcm(self, indices: Sequence[int]) -> list[Int[np.ndarray, " S"]]:
        """int16 PCM of the examples; DataError where a record is damaged."""
        starts = list(itertools.accumulate((records.num_examples for records in self.records), initial=0))
        wanted = np.asarray(indices, np.int64)
        found: dict[int, Int[np.ndarray, " S"]] = {}
        for (start, end), records in zip(itertools.pairwise(starts), self.records, strict=True):
            places = np.flatnonzero((start <= wanted) & (wanted < end)).tolist()
            if places:
                own = records.read_pcm((wanted[places] - start).tolist())
                found.update(zip(places, own, strict=True))
        return [found[place] for place in range(len(wanted))]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A data set at the settings of ``config``; made by ``data_pipelines.prepare.prepare``."""

    config: DataConfig
    sample_rate_hz: int
    class_names: tuple[str, ...]
    """What labels index; empty where there are no classes."""
    num_rejected: int
    """Recordings that were left out; ``rejects.jsonl`` beside each of ``folders`` says which, and why."""
    tokenizer: Tokenizer
    splits: Mapping[str, Split]
    """The single splits; ``split`` joins them."""
    joined: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Names for several of them, joined with ``+``: a mixture's ``train`` and ``test``."""

    def split(self, name: str) -> Split:
        """A split, or several joined with ``+``; UserError where there is none of that name."""
        return join_splits(self.splits, name, self.joined)

    @property
    def folders(self) -> tuple[Path, ...]:
        """The TFDS data sets, one a part of a mixture."""
        return tuple(
            dict.fromkeys(records.folder for split in self.splits.values() for records in split.records)
        )

    @property
    def num_sources(self) -> int:
        """Parts of the mixture; 0 where there is one data set alone."""
        return len(self.config.dataset.parts) if isinstance(self.config.dataset, MixtureConfig) else 0

    @property
    def num_source_samples(self) -> int:
        """S of the batch contract."""
        return round(self.config.source_sec * self.sample_rate_hz)

    @property
    def licences(self) -> dict[str, str]:
        """Licences of what is trained on, with their counts, by the name of the data set (``Esc50``)."""
        train, dataset = self.split(self.config.train_split), self.config.dataset
        sets = [part.dataset for part in dataset.parts] if isinstance(dataset, MixtureConfig) else [dataset]
        kinds = [type(one).__name__.removesuffix("Config") for one in sets]
        by_kind: dict[str, list[str]] = {}
        for source, licence in zip(train.source.tolist(), train.licences, strict=True):
            by_kind.setdefault(kinds[source], []).append(licence)
        return {kind: count_licences(licences) for kind, licences in by_kind.items()}

    @functools.cached_property
    def prompts(self) -> tuple[Prompts, ...]:
        """The encoded prompts of each of `DataConfig.prompts`. Raises UserError as `encode_prompts`."""
        length = self.config.prompt_length
        return tuple(encode_prompt_config(self.tokenizer, prompt, length) for prompt in self.config.prompts)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what a run reads: examples of both splits in order, classes, settings, tokenizer, prompts."""
        digest = hashlib.sha256()
        negatives = self.config.num_negatives > 0
        splits = {name: self.split(name) for name in (self.config.train_split, self.config.eval_split)}
        lines: list[Any] = [
            [self.config.source_sec, self.sample_rate_hz, self.config.tokenizer.max_length],
            [self.class_names, self.tokenizer.to_str()],
        ]
        # What a data set alone with nothing asked does not have leaves its fingerprint as it is.
        lines += [dataclasses.asdict(prompt) for prompt in self.config.prompts]
        if isinstance(self.config.dataset, MixtureConfig):
            weights = [[part.name, part.weight] for part in self.config.dataset.parts]
            lines += [
                [self.config.dataset.mode, weights],
                [split.source.tolist() for split in splits.values()],
            ]
        for name in (self.config.train_split, self.config.eval_split):
            lines += [[name], *splits[name].describe(negatives=negatives)]
        for line in lines:
            digest.update(json.dumps(line).encode() + b"\n")
        return digest.hexdigest()


def count_licences(licences: Iterable[str]) -> str:
    """Each licence with the number of its examples, the most frequent first."""
    counts = collections.Counter(licences)
    ordered = sorted(counts, key=lambda licence: (-counts[licence], licence))
    return ", ".join(f"{licence or 'unknown'} ({counts[licence]})" for licence in ordered)


def join_splits(splits: Mapping[str, Split], name: str, joined: Mapping[str, str] | None = None) -> Split:
    """The examples of the splits that ``name`` joins with ``+``, one after the other.

    ``joined`` has names for several of ``splits``. Raises UserError where there is no split of a name, or one comes
    twice.
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
    parts = [splits[part] for part in names]
    fields: dict[str, Any] = {}
    for field in ("source", "labels", "num_samples"):
        fields[field] = np.concatenate([getattr(part, field) for part in parts])
    for field in (
        "records",
        "ids",
        "all_labels",
        "all_captions",
        "all_negatives",
        "licences",
        "source_sha256",
    ):
        fields[field] = tuple(itertools.chain(*(getattr(part, field) for part in parts)))
    return Split(name="+".join(names), **fields)


def write_index(builder: tfds.core.DatasetBuilder, path: Path) -> None:
    """Writes what is in the records but the audio, reading each of them back as it is on disk."""
    with open(path, "w", encoding="utf-8") as index:
        for split in builder.info.splits:
            for record in builder.as_data_source(split):
                row = {
                    "split": split,
                    "id": record["id"].decode(),
                    "captions": [caption.decode() for caption in record["captions"]],
                    "negatives": [caption.decode() for caption in record["negatives"]],
                    "labels": [int(label) for label in record["labels"]],
                    "num_samples": len(record["audio"]),
                    "licence": record["licence"].decode(),
                    "source_sha256": record["source_sha256"].decode(),
                }
                index.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_index(folder: Path) -> dict[str, Split]:
    """The single splits of the data set in ``folder``."""
    rows: dict[str, list[dict[str, Any]]] = {}
    with open(folder / INDEX_FILE, encoding="utf-8") as index:
        for line in index:
            row = json.loads(line)
            rows.setdefault(row["split"], []).append(row)
    return {
        name: Split(
            name=name,
            records=(Records(folder=folder, name=name, num_examples=len(examples)),),
            source=np.zeros(len(examples), np.int32),
            ids=tuple(row["id"] for row in examples),
            labels=np.array([_only(row["labels"]) for row in examples], np.int32),
            all_labels=tuple(tuple(row["labels"]) for row in examples),
            num_samples=np.array([row["num_samples"] for row in examples], np.int64),
            all_captions=tuple(tuple(row["captions"]) for row in examples),
            all_negatives=tuple(tuple(row["negatives"]) for row in examples),
            licences=tuple(row["licence"] for row in examples),
            source_sha256=tuple(row["source_sha256"] for row in examples),
        )
        for name, examples in rows.items()
    }


def _only(labels: Sequence[int]) -> int:
    """The label of an example that has one; -1 where it has none, or several."""
    return labels[0] if len(labels) == 1 else -1
