"""A split of a data set as evaluators read it: recordings in order, their texts and their classes."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from alm_jax import batch as contract
from alm_jax.errors import DataError
from data_pipelines.config import MixtureConfig
from data_pipelines.datasets.synthetic_captions import SyntheticCaptionsConfig
from data_pipelines.pipeline import eval_batches
from data_pipelines.prepare import Prepared
from data_pipelines.text import encode

KEPT_BYTES = 2 << 30
"""Decoded batches of a split that are kept in memory; what is more is read again by each evaluator that needs it."""


class EvaluationSplit:
    """A split, and its batches: each is decoded once, whatever number of evaluators read it."""

    def __init__(self, data: Prepared, name: str, *, batch_size: int):
        """``name``: split(s) joined with ``+``. Raises UserError where there is none of that name."""
        self.data = data
        self.name = name
        self.batch_size = batch_size
        self._split = data.split(name)
        self._kept: list[dict[str, np.ndarray]] = []
        if not len(self._split):
            raise DataError(f"split {name!r} holds no recording; an evaluation needs one at least")

    def __len__(self) -> int:
        return len(self._split)

    def sibling(self, name: str) -> "EvaluationSplit":
        """Another split of the same data set."""
        return EvaluationSplit(self.data, name, batch_size=self.batch_size)

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes that labels count; empty where the data set has none."""
        return self.data.class_names

    @property
    def labels(self) -> np.ndarray:
        """[N] int32, -1 where a recording has no class."""
        return self._split.labels

    @property
    def has_classes(self) -> bool:
        """Whether every recording has a class."""
        return bool(self.class_names) and bool((self.labels >= 0).all())

    @property
    def templates(self) -> tuple[str, ...]:
        """What the captions of a class are made of, ``{}`` for its name; empty where captions are written by people."""
        return getattr(self.data.config.dataset, "templates", ())

    @property
    def has_prompts(self) -> bool:
        """Whether the captions are answers to prompts."""
        return bool(self.data.config.prompts)

    def id(self, index: int) -> str:
        """The name of a recording."""
        return self._split.ids[index]

    def captions(self, index: int) -> list[str]:
        """Every caption of a recording."""
        return self._split.captions(index)

    def negatives(self, index: int) -> list[str]:
        """Wrong captions of a recording that its loss reads; none where it reads none."""
        return list(self._split.all_negatives[index][: self.data.config.num_negatives])

    def question(self, index: int) -> str:
        """What is asked of a recording in evaluation; empty where nothing is."""
        prompts = self.data.config.prompts
        if not prompts:
            return ""
        source = int(self._split.source[index]) if len(prompts) > 1 else 0
        return prompts[source].questions[0]

    def rows_of(self, sources: Sequence[int]) -> np.ndarray:
        """Places of the recordings of these parts of a mixture, of all where ``sources`` is empty."""
        found = self._split.source
        return np.flatnonzero(np.isin(found, sources) if len(sources) else found >= 0)

    def is_composed(self, index: int) -> bool:
        """Whether a recording is composed of events that its caption names, all of them and no other."""
        dataset = self.data.config.dataset
        parts = [part.dataset for part in dataset.parts] if isinstance(dataset, MixtureConfig) else [dataset]
        return isinstance(parts[int(self._split.source[index])], SyntheticCaptionsConfig)

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids [M L] and mask [M L] of captions, cut as the data set's config says."""
        return encode(self.data.tokenizer, list(texts), self.data.config.tokenizer.max_length)

    def shown(self, count: int) -> np.ndarray:
        """Places of at most ``count`` recordings from all over the split: neighbours are often of one class."""
        return np.unique(np.linspace(0, len(self) - 1, count).astype(int))

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        """The recordings in order, in batches of one shape, the last one padded."""
        yield from self._kept
        num_rows = sum(int(batch[contract.MASK].sum()) for batch in self._kept)
        if num_rows == len(self):
            return
        num_bytes = sum(value.nbytes for batch in self._kept for value in batch.values())
        batches = eval_batches(self.data, self.name, batch_size=self.batch_size)
        for batch in itertools.islice(batches, len(self._kept), None):
            # The pipeline may use the memory of a batch again for the next one.
            own = {key: np.array(value) for key, value in batch.items()}
            num_bytes += sum(value.nbytes for value in own.values())
            if num_bytes <= KEPT_BYTES:
                self._kept.append(own)
            yield own

    def rows(self, places: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """The recordings at these places, in batches of any size."""
        for batch in self.batches():
            wanted = np.flatnonzero(np.isin(batch[contract.INDEX], places))
            if len(wanted):
                yield {key: value[wanted] for key, value in batch.items()}
