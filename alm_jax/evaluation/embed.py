"""Turns batches into embeddings on the host; the caller's jitted functions do the work on the devices.

Every call of ``encode`` sees one and the same shape, so it compiles once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from alm_jax import batch as contract
from alm_jax.errors import DataError

Batch = Mapping[str, Any]


def embed_audio(
    encode: Callable[[Batch], Any], batches: Iterable[Batch]
) -> tuple[Float[np.ndarray, "N *E"], Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Embeds the recordings of ``batches``, padding rows left out.

    Args:
      encode: a batch (see ``alm_jax.batch``) -> audio embeddings [B E], or [B K E] of K vectors a recording.
      batches: batches of one shape, the last one padded.

    Returns:
      The embeddings, float32, in the order of the batches; each one's ``index`` in its split; its label.

    Raises:
      DataError: the batches hold no real row.
    """

    def outputs() -> Iterator[tuple[Any, np.ndarray, np.ndarray, np.ndarray]]:
        for batch in batches:
            # What the host keeps must be its own: an iterator may reuse the memory of its last batch.
            rows = (np.array(batch[key]) for key in (contract.MASK, contract.INDEX, contract.LABEL))
            yield encode(batch), *rows

    embs, indices, labels = [], [], []
    for emb, mask, index, label in _one_ahead(outputs()):
        embs.append(np.asarray(emb, np.float32)[mask])
        indices.append(index[mask])
        labels.append(label[mask])
    if sum(map(len, embs)) == 0:
        raise DataError("0 recordings to embed; an evaluation needs one at least. Is the split empty?")
    return np.concatenate(embs), np.concatenate(indices), np.concatenate(labels)


def embed_text(
    encode: Callable[[np.ndarray, np.ndarray], Any],
    ids: Int[np.ndarray, "M L"],
    mask: Bool[np.ndarray, "M L"],
    batch_size: int,
) -> Float[np.ndarray, "M E"]:
    """Embeds M token sequences, ``batch_size`` at a time; the last batch repeats its last row to be full.

    Args:
      encode: ids [b L] and mask [b L] -> text embeddings [b E].

    Raises:
      DataError: there is nothing to embed.
    """
    num_texts = len(ids)
    if num_texts == 0:
        raise DataError("0 captions to embed; an evaluation needs one at least. Is the split empty?")

    def outputs() -> Iterator[Any]:
        for start in range(0, num_texts, batch_size):
            rows = np.minimum(np.arange(start, start + batch_size), num_texts - 1)
            yield encode(ids[rows], mask[rows])

    return np.concatenate([np.asarray(emb, np.float32) for emb in _one_ahead(outputs())])[:num_texts]


def _one_ahead(iterator: Iterator[Any]) -> Iterator[Any]:
    """The same items, each handed out after the next one is made.

    JAX returns before the device is done, so the host prepares a batch while the device works on another;
    no more than two are in flight, which bounds the device's memory.
    """
    for previous in iterator:
        for item in iterator:
            yield previous
            previous = item
        yield previous
