"""Embedding a split batch by batch equals embedding it at once, and compiles once."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax import batch as contract
from alm_jax.errors import DataError
from alm_jax.evaluation.embed import embed_audio, embed_text


def make_batches(num_clips: int, batch_size: int, *, reuse_memory: bool = False) -> Iterator[dict[str, Any]]:
    """Batches by the contract whose clip i is the constant i, the last one padded."""
    memory: dict[str, Any] = {}
    for start in range(0, max(num_clips, 1), batch_size):
        index = np.arange(start, start + batch_size, dtype=np.int32)
        mask = index < num_clips
        arrays = {
            contract.AUDIO: np.where(mask, index, -77).astype(np.int16)[:, None].repeat(8, axis=1),
            contract.AUDIO_NUM_SAMPLES: np.where(mask, 8, 0).astype(np.int32),
            contract.TEXT_IDS: np.zeros((batch_size, 4), np.int32),
            contract.TEXT_MASK: np.zeros((batch_size, 4), bool),
            contract.MASK: mask,
            contract.INDEX: np.where(mask, index, -1).astype(np.int32),
            contract.LABEL: np.where(mask, index % 3, -1).astype(np.int32),
        }
        contract.validate(arrays)
        if reuse_memory:
            for key, array in arrays.items():
                memory.setdefault(key, array)[...] = array
            yield memory
        else:
            yield arrays


@pytest.mark.parametrize("num_clips", [1, 4, 5, 8, 11])
@pytest.mark.parametrize("reuse_memory", [False, True])
def test_audio_without_its_padding(num_clips: int, reuse_memory: bool) -> None:
    traces = []

    @jax.jit
    def encode(audio: jax.Array) -> jax.Array:
        traces.append(audio.shape)
        return jnp.stack([audio.mean(axis=1), jnp.ones(len(audio))], axis=1)

    batches = make_batches(num_clips, 4, reuse_memory=reuse_memory)
    emb, index, labels = embed_audio(lambda batch: encode(batch[contract.AUDIO].astype(np.float32)), batches)
    np.testing.assert_array_equal(emb, np.stack([np.arange(num_clips), np.ones(num_clips)], axis=1))
    np.testing.assert_array_equal(index, np.arange(num_clips))
    np.testing.assert_array_equal(labels, np.arange(num_clips) % 3)
    assert emb.dtype == np.float32
    assert len(traces) == 1


@pytest.mark.parametrize("num_texts", [1, 4, 5, 11])
def test_text_in_full_batches(num_texts: int) -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 100, (num_texts, 6)).astype(np.int32)
    mask = np.arange(6)[None, :] < rng.integers(1, 7, num_texts)[:, None]
    traces = []

    @jax.jit
    def encode(ids: jax.Array, mask: jax.Array) -> jax.Array:
        traces.append(ids.shape)
        total = jnp.where(mask, ids, 0).sum(axis=1)
        return jnp.stack([total, 1 / mask.sum(axis=1)], axis=1)

    emb = embed_text(encode, ids, mask, 4)
    expected = np.stack([(ids * mask).sum(axis=1), 1 / mask.sum(axis=1)], axis=1)
    # A padding row is never an empty text, which a masked mean would turn into NaN.
    np.testing.assert_allclose(emb, expected, rtol=1e-6)
    assert traces == [(4, 6)]


def test_nothing_to_embed() -> None:
    with pytest.raises(DataError, match="0 recordings"):
        embed_audio(lambda batch: np.zeros((4, 2)), iter([]))
    with pytest.raises(DataError, match="0 recordings"):
        embed_audio(lambda batch: np.zeros((4, 2)), make_batches(0, 4))
    with pytest.raises(DataError, match="0 captions"):
        embed_text(lambda ids, mask: ids, np.zeros((0, 6), np.int32), np.zeros((0, 6), bool), 4)
