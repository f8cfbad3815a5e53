"""Which examples each training step reads, in which epoch: a pure function of (seed, step), over any mixture.

The examples of a split are dealt into *streams*: one for the data set, or one for each part of a mixture, and each of
these again one for each duration bucket (`data_pipelines.config.DurationBucketsConfig`). Each stream has its own
permutations and its own epochs (`data_pipelines.sampling`), and a schedule says which streams a step reads from
(`data_pipelines.mixture`). The graph computes the place of an example in its stream; the example is then found from the
borders of the split's stretches or from a file of row numbers, so memory does not grow with the number of examples.
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
    num_samples: int
    """Samples of a recording in its batches, S of the batch contract."""
    members: Sequence[Int[np.ndarray, " N"]] | None = None
    """Places in each stretch of the stream's examples; None: all places."""

    def __len__(self) -> int:
        return int(self.sizes.sum())

    @functools.cached_property
    def _ends(self) -> Int[np.ndarray, " P"]:
        return np.cumsum(self.sizes)

    def indices(self, places: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        """Returns the indices in the split of the examples at these places of the stream."""
        stretch = np.searchsorted(self._ends, places, side="right")
        inside = places - (self._ends - self.sizes)[stretch]
        if self.members is not None:
            for number in np.unique(stretch).tolist():
                here = stretch == number
                inside[here] = self.members[number][inside[here]]
        return inside + self.starts[stretch]


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
    """Makes the order in which training reads ``split``.

    Args:
      batch_size: rows of a batch of recordings of full length.
    """
    config, dataset = prepared.config, prepared.config.dataset
    mixture = dataset if isinstance(dataset, MixtureConfig) else None
    # Only the parts that the split has; each split of a part lies in one piece or several.
    parts = sorted({stretch.part for stretch in split.stretches})
    names = [mixture.parts[part].name if mixture else "" for part in parts]
    sorts = all(stretch.by_length for stretch in split.stretches)
    shapes = config.duration_buckets.shapes(config.window_sec, batch_size)
    shapes = shapes if sorts else shapes[-1:]
    by_part = [
        [
            _make_stream(
                split, part, name, round(seconds * prepared.sample_rate_hz), bucket if sorts else None
            )
            for bucket, (seconds, _) in enumerate(shapes)
        ]
        for part, name in zip(parts, names, strict=True)
    ]
    weights: Sequence[float] = [mixture.parts[part].weight if mixture else 1 for part in parts]
    if mixture and mixture.temperature is not None:
        sizes = [sum(map(len, streams)) for streams in by_part]
        weights = whole_weights([size ** (1 / mixture.temperature) for size in sizes])
    seeds = [part_seed(seed, part) if mixture else seed for part in parts]
    if not sorts:
        plan = schedule(
            list(map(int, weights)), [batch_size] * len(parts), mixture.mode if mixture else "rows"
        )
        return Order(streams=[own for (own,) in by_part], plan=plan, seeds=np.array(seeds, np.uint64))

    # A part's batches are shared out to its lengths as their recordings fill them, so that all are read equally often.
    streams, rows, shares, keys = [], [], [], []
    for own, weight, key in zip(by_part, weights, seeds, strict=True):
        num_batches = [len(stream) / size for stream, (_, size) in zip(own, shapes, strict=True)]
        for bucket, stream in enumerate(own):
            if len(stream):
                streams.append(stream)
                rows.append(shapes[bucket][1])
                shares.append(weight * num_batches[bucket] / sum(num_batches))
                keys.append(part_seed(key, bucket))
    plan = schedule(whole_weights(shares), rows, "turns")
    return Order(streams=streams, plan=plan, seeds=np.array(keys, np.uint64))


def _make_stream(split: Split, part: int, name: str, num_samples: int, bucket: int | None) -> Stream:
    own = [number for number, stretch in enumerate(split.stretches) if stretch.part == part]
    members = None if bucket is None else [split.stretches[number].by_length[bucket] for number in own]
    sizes = [len(split.stretches[number]) for number in own] if members is None else list(map(len, members))
    return Stream(
        name=name,
        part=part,
        starts=split.starts[own],
        sizes=np.array(sizes, np.int64),
        num_samples=num_samples,
        members=members,
    )
