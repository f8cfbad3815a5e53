"""Which examples each training step reads, in which epoch: a pure function of (seed, step), over any mixture.

The examples of a split are dealt into *streams*: one for the data set, or one for each part of a mixture. Each stream
has its own permutations and its own epochs (`data_pipelines.sampling`), and a schedule says which streams a step
reads from (`data_pipelines.mixture`). The graph computes the place of an example in its stream; the example is then
found from the borders of the split's stretches or from a file of row numbers, so memory does not grow with the number
of examples.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from data_pipelines.config import MixtureConfig
from data_pipelines.mixture import Schedule, schedule, whole_weights
from data_pipelines.prepared import Prepared, Split
from data_pipelines.sampling import example_indices, part_seed
from data_pipelines.tensorflow_cpu import load_tensorflow


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """Some examples of a split, with their own order."""

    name: str
    """Name of the part of the mixture; '' for a single data set."""
    part: int
    starts: Int[np.ndarray, " P"]
    """Index in the split of the first example of each of its stretches."""
    sizes: Int[np.ndarray, " P"]
    """Number of examples of each."""

    def __len__(self) -> int:
        return int(self.sizes.sum())

    @functools.cached_property
    def _ends(self) -> Int[np.ndarray, " P"]:
        return np.cumsum(self.sizes)

    def indices(self, places: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        """Returns the indices in the split of the examples at these places of the stream."""
        stretch = np.searchsorted(self._ends, places, side="right")
        return places - (self._ends - self.sizes)[stretch] + self.starts[stretch]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Order:
    """The order of a training run."""

    streams: Sequence[Stream]
    plan: Schedule
    seeds: Int[np.ndarray, " K"]

    def draw(self, step: Any) -> tuple[Any, Any, Any]:
        """Returns (stream, place in it, epoch) of the rows of a step, [B] each, computed in the graph."""
        tf = load_tensorflow()
        plan = self.plan
        first, number = tf.constant(plan.first_row, tf.int64), step % len(plan)
        rows = tf.range(first[number], first[number + 1])
        stream = tf.gather(tf.constant(plan.part, tf.int64), rows)
        positions = step // len(plan) * tf.gather(
            tf.constant(plan.rows_per_period, tf.int64), stream
        ) + tf.gather(tf.constant(plan.offset, tf.int64), rows)
        places, epochs = example_indices(
            positions,
            seed=tf.gather(tf.constant(self.seeds), stream),
            num_examples=tf.gather(tf.constant([len(own) for own in self.streams], tf.int64), stream),
        )
        return stream, places, epochs

    def indices(self, streams: Int[np.ndarray, " B"], places: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        """Returns the indices in the split of examples at these places of these streams."""
        found = np.empty(len(places), np.int64)
        for number in np.unique(streams).tolist():
            here = streams == number
            found[here] = self.streams[number].indices(places[here])
        return found

    def epochs(self, step: int) -> dict[str, float]:
        """Returns how often each part has been read before a step: 1.5 is once and a half."""
        given = self.plan.rows_before(step)
        rows: dict[str, int] = {}
        sizes: dict[str, int] = {}
        for stream, count in zip(self.streams, given.tolist(), strict=True):
            rows[stream.name] = rows.get(stream.name, 0) + count
            sizes[stream.name] = sizes.get(stream.name, 0) + len(stream)
        return {name: rows[name] / sizes[name] for name in rows}


def make_order(prepared: Prepared, split: Split, *, batch_size: int, seed: int) -> Order:
    """Makes the order in which training reads ``split``."""
    dataset = prepared.config.dataset
    if not isinstance(dataset, MixtureConfig):
        stream = _make_stream(split, 0, "")
        plan = schedule([1], [batch_size], "rows")
        return Order(streams=(stream,), plan=plan, seeds=np.array([seed], np.uint64))
    # Only the parts that the split has; each split of a part lies in one piece or several.
    parts = sorted({stretch.part for stretch in split.stretches})
    streams = [_make_stream(split, part, dataset.parts[part].name) for part in parts]
    weights: Sequence[int] = [dataset.parts[part].weight for part in parts]
    if dataset.temperature is not None:
        weights = whole_weights([len(stream) ** (1 / dataset.temperature) for stream in streams])
    seeds = np.array([part_seed(seed, part) for part in parts], np.uint64)
    return Order(
        streams=streams,
        plan=schedule(weights, [batch_size] * len(parts), dataset.mode),
        seeds=seeds,
    )


def _make_stream(split: Split, part: int, name: str) -> Stream:
    own = [number for number, stretch in enumerate(split.stretches) if stretch.part == part]
    return Stream(
        name=name,
        part=part,
        starts=split.starts[own],
        sizes=np.array([len(split.stretches[number]) for number in own], np.int64),
    )
