"""Batches of the contract in ``alm_jax.batch``, through ``tf.data``; to resume takes one integer.

    range(start_step, ...) -> places (data_pipelines.order) -> random access into the records -> prefetch

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
import os
import weakref
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from alm_jax import batch as contract
from alm_jax.errors import AlmError, UserError
from data_pipelines.captions import make_caption, make_negatives
from data_pipelines.order import Order, make_order
from data_pipelines.prepared import Prepared, Split
from data_pipelines.prompts import encode_answers
from data_pipelines.sampling import caption_rng, draw_order, draw_question, example_rng
from data_pipelines.tensorflow_cpu import load_tensorflow
from data_pipelines.text import encode, pad_id

Batch = dict[str, np.ndarray]

_PREFETCHED_BATCHES = 2
_PADDING = -1
_ALIGNMENT_BYTES = 64  # of a tensor
# Purposes of the random numbers of an example; each has its own bits.


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
    """Yields this process's rows of the global batches from ``start_step`` on, without end.

    Each epoch is a permutation of the split, or in a mixture of what the split has of each part; batches run
    across its end. An example with several captions shows one a time, ``data.num_negatives`` of its negative captions,
    and a recording longer than ``source_sec`` one window, and is asked one of the questions of ``data.prompt``, all
    chosen at random again in every epoch. With ``duration_buckets`` every batch has recordings of one length, S, and
    with a budget of samples more rows where they are shorter. With ``tokenizer.length_buckets``, L is the first of them
    that holds every text of the global batch; a process then tokenizes the captions of the others' rows too, and needs
    no communication.

    Args:
      batch_size: rows of the global batch, over all processes, where recordings have full length.
      seed: determines order, captions and windows.
      start_step: the first step; starting late takes no extra time.

    Raises:
      UserError: the batch does not divide among the processes, or the seed is negative.
      DataError: a damaged record, when its batch comes.
    """
    if seed < 0:
        raise UserError(f"the seed of the data order is {seed}; it must be zero or more")
    source = prepared.split(split)
    check_batch_size(batch_size, process_count)
    tf = load_tensorflow()
    order = make_order(prepared, source, batch_size=batch_size, seed=seed)
    steps = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
    reader = _Reader(prepared, source, process_index, process_count, seed=seed, order=order)
    return _iterate(steps.map(order.draw), reader)


def eval_batches(
    prepared: Prepared, split: str, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Yields this process's rows of the split in order, once; rows that fill up the last batch are masked.

    The text of a row is its first caption (``Split.captions`` has them all), its window the centre, its
    negative captions the first, its question the first.
    Every process gets the same number of batches. Raises UserError as ``train_batches`` does.
    """
    source = prepared.split(split)
    check_batch_size(batch_size, process_count)
    tf = load_tensorflow()

    def enumerate_rows(step: Any) -> tuple[Any, Any, Any]:
        positions = step * batch_size + tf.range(batch_size, dtype=tf.int64)
        places = tf.where(positions < len(source), positions, _PADDING)
        return tf.zeros_like(positions), places, tf.zeros_like(positions)

    steps = tf.data.Dataset.range(-(-len(source) // batch_size))
    return _iterate(steps.map(enumerate_rows), _Reader(prepared, source, process_index, process_count))


def check_batch_size(batch_size: int, process_count: int) -> None:
    """Raises UserError where a batch does not divide among the processes."""
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"a batch of {batch_size} does not divide among {process_count} processes; "
            f"use a multiple of {process_count}"
        )


@dataclasses.dataclass
class _Reader:
    """Makes this process's rows of a batch from the places of all rows; stateless except for the error it passes
    on."""

    prepared: Prepared
    split: Split
    process_index: int
    process_count: int
    seed: int | None = None
    """Seed of captions and windows; None in evaluation."""
    order: Order | None = None
    """Order of training; None in evaluation, where places are indices of the split."""
    error: AlmError | None = None

    def __call__(
        self, streams: Int[np.ndarray, " B"], places: Int[np.ndarray, " B"], epochs: Int[np.ndarray, " B"]
    ) -> list[np.ndarray]:
        """Values of the batch in the order of the contract's keys."""
        try:
            if self.order is None:
                batch = self._read(places, epochs, self.prepared.num_source_samples)
            else:
                size = self.order.streams[int(streams[0])].num_samples  # of all rows the same
                batch = self._read(self.order.indices(streams, places), epochs, size)
            return list(batch.values())
        except AlmError as error:
            self.error = error
            raise

    def _own(self, num_rows: int) -> slice:
        """Rows of the global batch that belong to this process."""
        size = num_rows // self.process_count
        return slice(self.process_index * size, (self.process_index + 1) * size)

    def _read(self, indices: Int[np.ndarray, " B"], epochs: Int[np.ndarray, " B"], size: int) -> Batch:
        own = self._own(len(indices))
        text_ids, text_mask = self._read_text(indices, epochs)
        indices, epochs = indices[own], epochs[own]
        mask = indices != _PADDING
        audio, num_samples = self._read_audio(indices, epochs, size)
        labels = np.full(len(indices), -1, np.int32)
        labels[mask] = self.split.single_labels(indices[mask])
        batch = {
            contract.AUDIO: audio,
            contract.AUDIO_NUM_SAMPLES: num_samples,
            contract.TEXT_IDS: text_ids[:, 0],
            contract.TEXT_MASK: text_mask[:, 0],
            contract.MASK: mask,
            contract.INDEX: indices.astype(np.int32),
            contract.LABEL: labels,
        }
        if self.prepared.config.num_negatives:
            batch |= {contract.NEGATIVE_IDS: text_ids[:, 1:], contract.NEGATIVE_MASK: text_mask[:, 1:]}
        if self.prepared.prompts:
            batch |= self._read_prompts(indices, epochs)
        if self.prepared.num_sources:
            batch[contract.SOURCE] = np.where(mask, self.split.parts(indices), -1).astype(np.int32)
        return batch

    def _read_audio(
        self, indices: Int[np.ndarray, " b"], epochs: Int[np.ndarray, " b"], size: int
    ) -> tuple[Int[np.ndarray, "b S"], Int[np.ndarray, " b"]]:
        """Reads a window of ``size`` samples of every recording, and its real length; a padding row has length 0."""
        audio, num_samples = _empty_pcm(len(indices), size), np.zeros(len(indices), np.int32)
        real = np.flatnonzero(indices != _PADDING)
        wanted = indices[real]
        room = np.maximum(0, self.split.lengths(wanted) - size)
        starts = room // 2
        if self.seed is not None:
            longer = np.flatnonzero(room)
            rows = self.split.find_rows(wanted[longer])
            for place, (stretch, row) in zip(longer.tolist(), rows, strict=True):
                rng = example_rng(self.seed, int(epochs[real[place]]), int(wanted[place]))
                rng.integers(len(stretch.captions(row)))  # the caption is chosen first
                starts[place] = rng.integers(int(room[place]) + 1)
        for row, pcm in zip(real.tolist(), self.split.read_windows(wanted, starts, size), strict=True):
            audio[row, : len(pcm)] = pcm
            num_samples[row] = len(pcm)
        for row, length in enumerate(num_samples.tolist()):
            audio[row, length:] = 0
        return audio, num_samples

    def _read_prompts(self, indices: Int[np.ndarray, " b"], epochs: Int[np.ndarray, " b"]) -> Batch:
        """Returns the prompts of this process's rows; a padding row has none."""
        length = self.prepared.config.prompt_length
        ids = np.full((len(indices), length), pad_id(self.prepared.tokenizer), np.int32)
        mask, position = np.zeros(ids.shape, np.bool_), np.zeros(len(indices), np.int32)
        real = np.flatnonzero(indices != _PADDING)
        parts = self.split.parts(indices[real]).tolist()
        drawn = np.zeros(len(real), np.int64)
        if self.seed is not None:
            drawn = np.array(
                [
                    draw_question(
                        self.seed, int(epochs[row]), int(indices[row]), len(self.prepared.prompts[part].ids)
                    )
                    for row, part in zip(real.tolist(), parts, strict=True)
                ],
                np.int64,
            )
        for row, part, number in zip(real.tolist(), parts, drawn.tolist(), strict=True):
            prompts = self.prepared.prompts[part]
            ids[row], mask[row] = prompts.ids[number], prompts.mask[number]
            position[row] = prompts.audio_position[number]
        return {contract.PROMPT_IDS: ids, contract.PROMPT_MASK: mask, contract.AUDIO_POSITION: position}

    def _read_text(
        self, indices: Int[np.ndarray, " B"], epochs: Int[np.ndarray, " B"]
    ) -> tuple[Int[np.ndarray, "b K1 L"], Bool[np.ndarray, "b K1 L"]]:
        """Returns ids and mask of the texts of this process's rows, as long as the whole batch needs: K1 = 1 + K.

        A row's caption comes first, its negative captions after it; a missing text has no token.
        """
        config = self.prepared.config.tokenizer
        own = self._own(len(indices))
        # Evaluation stacks its batches, so all have the same length there.
        bucketed = bool(config.length_buckets) and self.seed is not None
        looked_at = slice(None) if bucketed else own
        per_row = 1 + self.prepared.config.num_negatives
        texts = self._draw_texts(indices[looked_at], epochs[looked_at])
        parts = np.repeat(self.split.parts(indices[looked_at]), per_row)
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
        """Encodes captions for a model that reads them, or as answers where their part has a prompt."""
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

    def _draw_texts(self, indices: Int[np.ndarray, " b"], epochs: Int[np.ndarray, " b"]) -> list[str | None]:
        """Chooses a caption of each example and K negative ones; None where there are fewer."""
        most, made = self.prepared.config.num_negatives, self.prepared.config.made_captions
        texts: list[str | None] = [None] * (len(indices) * (1 + most))
        real = np.flatnonzero(indices != _PADDING)
        rows = self.split.find_rows(indices[real])
        captions = [stretch.captions(row) for stretch, row in rows]
        for number, place in enumerate((real * (1 + most)).tolist()):
            own, key = captions[number], (int(epochs[real[number]]), int(indices[real[number]]))
            drawn = (
                0 if self.seed is None or len(own) == 1 else example_rng(self.seed, *key).integers(len(own))
            )
            texts[place] = caption = own[int(drawn)]
            stretch, row = rows[number]
            wrong = list(stretch.index.value("negatives", row)) if most else []
            if self.seed is not None and wrong:
                wrong = [wrong[i] for i in draw_order(self.seed, *key, len(wrong))]
            if made.templates:
                rng, all_names = caption_rng(self.seed or 0, *key), self.prepared.class_names
                names = [all_names[label] for label in stretch.labels(row)]
                if self.seed is not None:
                    texts[place] = make_caption(rng, caption, names, made.templates, made.fraction)
                if made.negatives and len(wrong) < most:
                    # Only classes of its own data set: those of others may occur in the recording unlabelled.
                    known = [all_names[label] for label in stretch.label_of.tolist()]
                    wrong += make_negatives(rng, names, known, made.templates, most - len(wrong))
            texts[place + 1 : place + 1 + len(wrong[:most])] = wrong[:most]
        return texts


def _empty_pcm(num_rows: int, size: int) -> Int[np.ndarray, "b S"]:
    """Allocates memory for the recordings of a batch, aligned so that TensorFlow uses it without a copy."""
    memory = np.empty(2 * num_rows * size + _ALIGNMENT_BYTES, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT_BYTES
    return memory[first : first + 2 * num_rows * size].view(np.int16).reshape(num_rows, size)


def _iterate(indices: Any, reader: _Reader) -> Iterator[Batch]:
    """Makes batches from a data set of (indices, epochs), read concurrently and returned in order."""
    tf = load_tensorflow()
    # Batches are already tokenized by several threads; more threads for each would wait for one another.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    config = reader.prepared.config
    num_reads = config.num_reads
    spec = contract.spec_of(
        negatives=config.num_negatives > 0,
        prompt=bool(config.prompts),
        source=reader.prepared.num_sources > 0,
    )
    dtypes = [tf.as_dtype(dtype) for dtype, _ in spec.values()]

    def read(streams: Any, places: Any, epochs: Any) -> tuple[Any, ...]:
        return tuple(tf.numpy_function(reader, [streams, places, epochs], dtypes))

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

    When the interpreter later destroys an iterator, tf.data waits for its threads, and those wait for an interpreter
    that admits no thread any more: the program would never end.
    """
    open_batches: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()

    def close() -> None:
        for batches in list(open_batches):
            with contextlib.suppress(ValueError):  # a thread of the program is using it
                batches.close()

    atexit.register(close)
    return open_batches


def _hand_on(dataset: Any, reader: _Reader, keys: Sequence[str]) -> Generator[Batch, None, None]:
    op_error = load_tensorflow().errors.OpError  # looked up now: at exit the module may already be gone
    try:
        for values in dataset.as_numpy_iterator():
            batch = dict(zip(keys, values, strict=True))
            contract.validate(batch)
            yield batch
    except op_error:
        if reader.error is not None:  # tf.data passes on the text of an error, not the error
            raise reader.error from None
        raise
