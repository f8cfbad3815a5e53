"""Contrast by the nearest of several vectors, against PyTorch in float64, and over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from alm_jax.losses.late_interaction import max_similarity, max_similarity_infonce
from alm_jax.losses.matching import (
    draw_hard_negatives,
    matching_pairs,
    matching_pairs_by_scores,
    mine_hard_negatives,
)

NUM_ROWS, NUM_QUERIES, EMBED_DIM = 8, 3, 5
MASK = np.arange(NUM_ROWS) != 5
GROUP = np.array([0, 1, 1, 2, 3, 4, 4, 4])


def embeddings(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors, float32."""
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(NUM_ROWS, NUM_QUERIES, EMBED_DIM))
    text = rng.normal(size=(NUM_ROWS, EMBED_DIM))
    return tuple((x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32) for x in (query, text))


QUERY, TEXT = embeddings()
LOSS = jax.jit(functools.partial(max_similarity_infonce, label_smoothing=0.1))


def published(query, text, scale, mask) -> torch.Tensor:
    """As in BLIP-2's code, of the real rows, which are alone in their groups."""
    query, text = query[mask], text[mask]
    similarity = torch.matmul(query[:, None], text[None, :, :, None]).squeeze(-1).max(-1).values / (1 / scale)
    target = torch.arange(len(text))
    return sum(
        torch.nn.functional.cross_entropy(x, target, label_smoothing=0.1, reduction="sum") / 2
        for x in (similarity, similarity.T)
    )


def test_value_and_gradients_equal_the_published_code():
    query, text = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (QUERY, TEXT))
    scale = torch.tensor(14.0, dtype=torch.float64, requires_grad=True)
    want = published(query, text, scale, torch.tensor(MASK))
    want.backward()

    def total(query, text, scale):
        loss, weight = LOSS(query, text, scale, mask=jnp.asarray(MASK))
        return loss, weight

    (found, weight), grads = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(
        jnp.asarray(QUERY), jnp.asarray(TEXT), jnp.float32(14.0)
    )
    assert weight == MASK.sum()
    np.testing.assert_allclose(found, want.item(), rtol=1e-5)
    for grad, leaf in zip(grads, (query, text, scale), strict=True):
        np.testing.assert_allclose(grad, leaf.grad.numpy(), atol=1e-5)


def test_rows_of_a_group_share_the_target():
    """In float64 NumPy."""
    logits = 7.0 * np.einsum("ike,je->ijk", QUERY.astype(np.float64), TEXT).max(-1)
    logits = np.where(MASK[None, :] & MASK[:, None], logits, -np.inf)
    positive = (GROUP[:, None] == GROUP[None, :]) & MASK[None, :]
    target = 0.9 * positive / positive.sum(1, keepdims=True) + 0.1 * MASK[None, :] / MASK.sum()
    want = 0.0
    for x in (logits[MASK][:, MASK], logits.T[MASK][:, MASK]):
        log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
        want -= (target[MASK][:, MASK] * log_p).sum() / 2
    found, _ = LOSS(QUERY, TEXT, jnp.float32(7.0), group=jnp.asarray(GROUP), mask=jnp.asarray(MASK))
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_negatives_by_scores_are_those_by_embeddings():
    """With one query the scores are products of embeddings, and the same keys draw the same rows."""
    audio, scale, key = jnp.asarray(QUERY[:, 0]), jnp.float32(3.0), jax.random.key(4)
    options = {"group": jnp.asarray(GROUP), "mask": jnp.asarray(MASK)}
    scores = scale * max_similarity(jnp.asarray(QUERY[:, :1]), jnp.asarray(TEXT))
    want = jax.jit(mine_hard_negatives)(key, audio, jnp.asarray(TEXT), scale, **options)
    found = jax.jit(draw_hard_negatives)(key, scores, **options)
    np.testing.assert_array_equal(found.found, want.found)
    np.testing.assert_array_equal(found.row[MASK], want.row[MASK])
    assert found.found.sum() == MASK.sum()
    assert (GROUP[np.asarray(found.row)] != GROUP)[MASK].all()
    pairs = jax.jit(matching_pairs)(key, audio, jnp.asarray(TEXT), scale, **options)
    by_scores = jax.jit(matching_pairs_by_scores)(key, scores, **options)
    np.testing.assert_array_equal(by_scores.mask, pairs.mask)
    for name in ("audio_index", "text_index", "is_match"):
        np.testing.assert_array_equal(
            getattr(by_scores, name)[pairs.mask], getattr(pairs, name)[pairs.mask], err_msg=name
        )


@pytest.mark.parametrize("axis", [0, 1])
def test_the_nearest_query_counts(axis):
    query = np.zeros((2, 2, 2), np.float32)
    query[0, axis], query[1, 1 - axis] = (1, 0), (0, 1)
    np.testing.assert_array_equal(max_similarity(jnp.asarray(query), jnp.eye(2)), np.eye(2))
