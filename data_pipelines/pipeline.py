"""Batches of the contract in ``alm_jax.batch``, through ``tf.data``; resuming is one integer.

    range(start_step, ...) -> indices (data_pipelines.sampling) -> random access into the records -> prefetch

The graph has no shuffle buffer and no state, so the batch of step k is the same whether the run started
at 0 or at k. With ``process_count`` hosts each reads its contiguous rows of the same global batch.

Measured with the 240 clips of ESC-10 folds 1 to 3 (5 s each, in the page cache, batch 32, two reads at a
time) on two busy Xeon cores: 740 clips/s at 44.1 and 48 kHz, 2300 clips/s at 16 kHz, which is 700 and 1700
clips per second of one core. Opening a prepared data set takes 0.1 s, importing TensorFlow 4 s, and the
first batch 0.2 s more.
"""

import atexit
import contextlib
import dataclasses
import functools
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from alm_jax import batch as contract
from alm_jax.errors import AlmError, UserError
from data_pipelines.config import MixtureConfig
from data_pipelines.mixture import schedule
from data_pipelines.prepared import Prepared, Split
from data_pipelines.prompts import encode_answers
from data_pipelines.sampling import example_indices, example_rng, part_seed
from data_pipelines.tensorflow_cpu import load_tensorflow
from data_pipelines.text import encode, pad_id

Batch = dict[str, np.ndarray]

_PREFETCHED_BATCHES = 2
_PADDING = -1


def train_batches(
    prepared: Prepared,
    split: str,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """This process's rows of the global batches from ``start_step`` on, without end.

    Each epoch is a permutation of the split, or in a mixture of what the split has of each part; batches run
    across its end. An example with several
    captions shows one a time, ``data.num_negatives`` of its negative captions, and a recording longer than
    ``source_sec`` one window, and is asked one of the questions of ``data.prompt``, all drawn anew in every
    epoch. With ``tokenizer.length_buckets``, L is the first of them that holds every text of the global
    batch; a process then tokenizes the captions of the others' rows too, and needs no word from them.

    Args:
      batch_size: rows of the global batch, over all processes.
      seed: decides order, captions and windows.
      start_step: the first step; costs nothing.

    Raises:
      UserError: the batch does not divide among the processes, or the seed is negative.
      DataError: a damaged record, when its batch comes.
    """
    if seed < 0:
        raise UserError(f"the seed of the data order is {seed}; it must be zero or more")
    source = prepared.split(split)
    rows = _local_rows(batch_size, process_index, process_count)
    tf = load_tensorflow()

    steps = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
    if prepared.num_sources:
        draw = _draw_from_parts(prepared, source, batch_size, seed)
    else:
        draw = _draw_from_one(len(source), batch_size, seed)
    return _iterate(steps.map(draw), _Reader(prepared, source, rows, seed=seed))


def _draw_from_one(num_examples: int, batch_size: int, seed: int) -> Callable[[Any], tuple[Any, Any]]:
    """(indices, epochs) of the rows of a step, as a function in the graph."""
    tf = load_tensorflow()

    def draw(step: Any) -> tuple[Any, Any]:
        positions = step * batch_size + tf.range(batch_size, dtype=tf.int64)
        return example_indices(positions, seed=seed, num_examples=num_examples)

    return draw


def _draw_from_parts(
    prepared: Prepared, split: Split, batch_size: int, seed: int
) -> Callable[[Any], tuple[Any, Any]]:
    """The same of a mixture: each row is the next of its part's own stream; indices are those of the whole split."""
    tf = load_tensorflow()
    dataset = prepared.config.dataset
    assert isinstance(dataset, MixtureConfig)
    parts = np.unique(
        split.source
    )  # those that the split has; each split of a part lies in one piece or several
    plan = schedule([dataset.parts[part].weight for part in parts], batch_size, dataset.mode)
    members = [np.flatnonzero(split.source == part) for part in parts]
    sizes = tf.constant([len(rows) for rows in members], tf.int64)
    starts = tf.math.cumsum(sizes, exclusive=True)
    member = tf.constant(np.concatenate(members), tf.int64)
    seeds = tf.constant(np.array([part_seed(seed, int(part)) for part in parts], np.uint64))
    part_of, offset_of = tf.constant(plan.part, tf.int64), tf.constant(plan.offset, tf.int64)
    rows_per_period, period = tf.constant(plan.rows_per_period, tf.int64), len(plan.part)

    def draw(step: Any) -> tuple[Any, Any]:
        part = tf.gather(part_of, step % period)
        positions = step // period * tf.gather(rows_per_period, part) + tf.gather(offset_of, step % period)
        places, epochs = example_indices(
            positions, seed=tf.gather(seeds, part), num_examples=tf.gather(sizes, part)
        )
        return tf.gather(member, tf.gather(starts, part) + places), epochs

    return draw


def eval_batches(
    prepared: Prepared, split: str, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """This process's rows of the split in order, once; rows that fill up the last batch are masked.

    The text of a row is its first caption (``Split.captions`` has them all), its window the centre, its
    negative captions the first, its question the first.
    Every process gets the same number of batches. Raises UserError as ``train_batches`` does.
    """
    source = prepared.split(split)
    rows = _local_rows(batch_size, process_index, process_count)
    tf = load_tensorflow()

    def enumerate_rows(step: Any) -> tuple[Any, Any]:
        positions = step * batch_size + tf.range(batch_size, dtype=tf.int64)
        return tf.where(positions < len(source), positions, _PADDING), tf.zeros_like(positions)

    steps = tf.data.Dataset.range(-(-len(source) // batch_size))
    return _iterate(steps.map(enumerate_rows), _Reader(prepared, source, rows, seed=None))


def _local_rows(batch_size: int, process_index: int, process_count: int) -> range:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"a batch of {batch_size} does not divide among {process_count} processes; "
            f"use a multiple of {process_count}"
        )
    size = batch_size // process_count
    return range(process_index * size, (process_index + 1) * size)


@dataclasses.dataclass
class _Reader:
    """Makes this process's rows of a batch from the indices of all; stateless but for the error it hands on."""

    prepared: Prepared
    split: Split
    rows: range
    """Rows of the global batch that are this process's."""
    seed: int | None
    """None in evaluation."""
    error: AlmError | None = None

    def __call__(self, indices: Int[np.ndarray, " B"], epochs: Int[np.ndarray, " B"]) -> list[np.ndarray]:
        """Values of the batch in the order of the contract's keys."""
        try:
            return list(self._read(indices, epochs).values())
        except AlmError as error:
            self.error = error
            raise

    def _read(self, indices: Int[np.ndarray, " B"], epochs: Int[np.ndarray, " B"]) -> Batch:
        own = slice(self.rows.start, self.rows.stop)
        text_ids, text_mask = self._read_text(indices, epochs)
        indices, epochs = indices[own], epochs[own]
        mask = indices != _PADDING
        real = np.flatnonzero(mask)
        size = self.prepared.num_source_samples
        audio = np.zeros((len(indices), size), np.int16)
        num_samples = np.zeros(len(indices), np.int32)
        pcm_of_rows = self.split.read_pcm([int(indices[row]) for row in real])
        for row, pcm in zip(real, pcm_of_rows, strict=True):
            start = self._draw(int(indices[row]), int(epochs[row]), len(pcm))[1]
            window = pcm[start : start + size]
            audio[row, : len(window)] = window
            num_samples[row] = len(window)
        batch = {
            contract.AUDIO: audio,
            contract.AUDIO_NUM_SAMPLES: num_samples,
            contract.TEXT_IDS: text_ids[:, 0],
            contract.TEXT_MASK: text_mask[:, 0],
            contract.MASK: mask,
            contract.INDEX: indices.astype(np.int32),
            contract.LABEL: np.where(mask, self.split.labels[indices], -1).astype(np.int32),
        }
        if self.prepared.config.num_negatives:
            batch |= {contract.NEGATIVE_IDS: text_ids[:, 1:], contract.NEGATIVE_MASK: text_mask[:, 1:]}
        if self.prepared.prompts:
            batch |= self._read_prompts(indices, epochs)
        if self.prepared.num_sources:
            batch[contract.SOURCE] = np.where(mask, self.split.source[indices], -1).astype(np.int32)
        return batch

    def _read_prompts(self, indices: Int[np.ndarray, " b"], epochs: Int[np.ndarray, " b"]) -> Batch:
        """The prompts of this process's rows; a padding row has none."""
        length = self.prepared.config.prompt_length
        ids = np.full((len(indices), length), pad_id(self.prepared.tokenizer), np.int32)
        mask, position = np.zeros(ids.shape, np.bool_), np.zeros(len(indices), np.int32)
        for row in np.flatnonzero(indices != _PADDING):
            index, epoch = int(indices[row]), int(epochs[row])
            prompts = self.prepared.prompts[self.split.source[index]]
            drawn = self._draw_prompt(index, epoch, len(prompts.ids))
            ids[row], mask[row] = prompts.ids[drawn], prompts.mask[drawn]
            position[row] = prompts.audio_position[drawn]
        return {contract.PROMPT_IDS: ids, contract.PROMPT_MASK: mask, contract.AUDIO_POSITION: position}

    def _read_text(
        self, indices: Int[np.ndarray, " B"], epochs: Int[np.ndarray, " B"]
    ) -> tuple[Int[np.ndarray, "b K1 L"], Bool[np.ndarray, "b K1 L"]]:
        """Ids and mask of the texts of this process's rows, as long as the whole batch needs: K1 = 1 + K.

        A row's caption comes first, its negative captions after it; a text that is not there has no token.
        """
        config = self.prepared.config.tokenizer
        own = slice(self.rows.start, self.rows.stop)
        # Evaluation stacks its batches, so there they stay of one length.
        bucketed = bool(config.length_buckets) and self.seed is not None
        looked_at = slice(None) if bucketed else own
        per_row = 1 + self.prepared.config.num_negatives
        texts = [
            text
            for index, epoch in zip(indices[looked_at].tolist(), epochs[looked_at].tolist(), strict=True)
            for text in self._draw_texts(index, epoch)
        ]
        parts = np.repeat(self.split.source[indices[looked_at]], per_row)
        ids, mask = self._encode([text or "" for text in texts], parts)
        mask &= np.array([text is not None for text in texts])[:, None]
        text_ids, text_mask = (x.reshape(-1, per_row, config.max_length) for x in (ids, mask))
        if not bucketed:
            return text_ids, text_mask
        longest = int(text_mask.sum(axis=-1).max())
        length = next(bucket for bucket in (*config.length_buckets, config.max_length) if bucket >= longest)
        return text_ids[own, :, :length], text_mask[own, :, :length]

    def _encode(
        self, texts: Sequence[str], parts: Int[np.ndarray, " T"]
    ) -> tuple[Int[np.ndarray, "T L"], Bool[np.ndarray, "T L"]]:
        """Captions as a model reads them, or where something is asked of their parts as answers."""
        tokenizer, config = self.prepared.tokenizer, self.prepared.config
        length = config.tokenizer.max_length
        if not config.prompts:
            return encode(tokenizer, texts, length)
        ids, mask = np.empty((len(texts), length), np.int32), np.empty((len(texts), length), np.bool_)
        for part, prompt in enumerate(config.prompts):
            own = np.flatnonzero(parts == part).tolist()
            answers = [texts[i] for i in own]
            ids[own], mask[own] = encode_answers(tokenizer, prompt.template, answers, length)
        return ids, mask

    def _draw_prompt(self, index: int, epoch: int, num_prompts: int) -> int:
        """Which of the prompts is an example's."""
        if self.seed is None or num_prompts == 1:
            return 0
        # Of its own stream, as the negative captions are.
        return int(example_rng(self.seed, epoch, index).spawn(2)[1].integers(num_prompts))

    def _draw_texts(self, index: int, epoch: int) -> list[str | None]:
        """A caption of an example and K negative ones, None where there are not as many."""
        most = self.prepared.config.num_negatives
        if index == _PADDING:
            return [None] * (1 + most)
        caption = self.split.all_captions[index][self._draw(index, epoch, 0)[0]]
        negatives = self.split.all_negatives[index]
        if self.seed is not None:
            # A stream of its own: captions and windows stay what they are without negatives.
            rng = example_rng(self.seed, epoch, index).spawn(1)[0]
            negatives = tuple(negatives[i] for i in rng.permutation(len(negatives)))
        return [caption, *negatives[:most], *[None] * (most - len(negatives))]

    def _draw(self, index: int, epoch: int, length: int) -> tuple[int, int]:
        """Which caption, and where the window starts, for an example of ``length`` samples."""
        room = max(0, length - self.prepared.num_source_samples)
        num_captions = len(self.split.all_captions[index])
        if self.seed is None:
            return 0, room // 2
        rng = example_rng(self.seed, epoch, index)
        return int(rng.integers(num_captions)), int(rng.integers(room + 1))


def _iterate(indices: Any, reader: _Reader) -> Iterator[Batch]:
    """Batches of a data set of (indices, epochs), read in parallel and handed on in order."""
    tf = load_tensorflow()
    config = reader.prepared.config
    num_reads = config.num_reads
    spec = contract.spec_of(
        negatives=config.num_negatives > 0,
        prompt=bool(config.prompts),
        source=reader.prepared.num_sources > 0,
    )
    dtypes = [tf.as_dtype(dtype) for dtype, _ in spec.values()]

    def read(rows: Any, epochs: Any) -> tuple[Any, ...]:
        return tuple(tf.numpy_function(reader, [rows, epochs], dtypes))

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.threading.private_threadpool_size = num_reads
    dataset = indices.map(read, num_parallel_calls=num_reads).prefetch(_PREFETCHED_BATCHES)
    batches = _hand_on(dataset.with_options(options), reader, list(spec))
    _close_at_exit().add(batches)
    return batches


@functools.cache
def _close_at_exit() -> weakref.WeakSet[Generator[Batch, None, None]]:
    """Iterators that are closed when the program ends, while Python still runs.

    Later, when the interpreter destroys what is left of one, tf.data would wait for its threads, and they
    for an interpreter that lets no thread in any more: the program would never end.
    """
    open_batches: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()

    def close() -> None:
        for batches in list(open_batches):
            with contextlib.suppress(ValueError):  # a thread of the program is in it, and keeps it
                batches.close()

    atexit.register(close)
    return open_batches


def _hand_on(dataset: Any, reader: _Reader, keys: Sequence[str]) -> Generator[Batch, None, None]:
    op_error = load_tensorflow().errors.OpError  # looked up now: at exit the module may be gone before this
    try:
        for values in dataset.as_numpy_iterator():
            batch = dict(zip(keys, values, strict=True))
            contract.validate(batch)
            yield batch
    except op_error:
        if reader.error is not None:  # tf.data hands on the text of an error, not the error
            raise reader.error from None
        raise
