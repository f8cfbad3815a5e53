"""Codes by cosine, and the codebook that follows the vectors: the moving average in float64, dead codes, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.ops.vector_quantization import (
    Codebook,
    count_codes,
    nearest_codes,
    normalize,
    perplexity,
    straight_through,
    take_codes,
    update_codebook,
)

ROWS, TOKENS, WIDTH, CODES = 3, 10, 4, 6
KEY = jax.random.key(0)


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def latents():
    return unit(np.random.default_rng(0), ROWS, TOKENS, WIDTH)


@pytest.fixture(scope="module")
def codebook():
    rng = np.random.default_rng(1)
    vectors = unit(rng, CODES, WIDTH)
    usage = np.ones(CODES, np.float32)
    return Codebook(jnp.asarray(vectors), jnp.asarray(usage))


@pytest.fixture(scope="module")
def update():
    def run(codebook, latents, mask, key, revive_below):
        return update_codebook(codebook, latents, mask, key, decay=0.9, revive_below=revive_below)

    return jax.jit(run, static_argnums=4)


def follow(codebook, latents, decay):
    """BEiT v2's update, in float64: the mean direction of a code's vectors, where it has any."""
    vectors = np.asarray(codebook.vectors, np.float64)
    flat = latents.reshape(-1, WIDTH).astype(np.float64)
    distances = np.square(flat[:, None] - vectors[None]).sum(axis=-1)
    nearest = distances.argmin(axis=1)
    usage = np.asarray(codebook.usage, np.float64)
    for code in range(CODES):
        own = flat[nearest == code]
        share = CODES * len(own) / len(flat)
        usage[code] = decay * usage[code] + (1 - decay) * share
        if len(own):
            mean = own.mean(axis=0)
            moved = decay * vectors[code] + (1 - decay) * mean / np.linalg.norm(mean)
            vectors[code] = moved / np.linalg.norm(moved)
    return nearest.reshape(latents.shape[:2]), vectors, usage


def test_codes_follow_their_vectors_as_published(codebook, latents, update):
    nearest, vectors, usage = follow(codebook, latents, 0.9)
    codes = nearest_codes(jnp.asarray(latents), codebook.vectors)
    np.testing.assert_array_equal(codes, nearest)
    moved = update(codebook, latents, np.ones(ROWS, bool), KEY, 0.0)
    np.testing.assert_allclose(moved.vectors, vectors, atol=1e-6)
    np.testing.assert_allclose(moved.usage, usage, atol=1e-6)
    np.testing.assert_array_equal(
        count_codes(codes, CODES).sum(axis=0), np.bincount(nearest.ravel(), minlength=CODES)
    )


def test_a_code_without_vectors_stays_or_is_revived_on_one(latents, update):
    vectors = unit(np.random.default_rng(1), CODES, WIDTH)
    vectors[2] = vectors[1]  # the first one in a tie takes all
    book = Codebook(jnp.asarray(vectors), jnp.full((CODES,), 0.1, jnp.float32))
    mask = np.ones(ROWS, bool)
    left = update(book, latents, mask, KEY, 0.0)
    np.testing.assert_allclose(left.vectors[2], vectors[2], atol=1e-7)
    np.testing.assert_allclose(left.usage[2], 0.09, rtol=1e-6)
    revived = update(book, latents, mask, KEY, 0.0901)
    assert np.abs(latents.reshape(-1, WIDTH) - np.asarray(revived.vectors)[2]).max(axis=1).min() == 0
    assert revived.usage[2] == 1.0
    kept = np.asarray(left.usage) >= 0.0901
    assert kept.any()
    np.testing.assert_array_equal(np.asarray(revived.vectors)[kept], np.asarray(left.vectors)[kept])


def test_codes_begin_on_different_vectors_of_the_first_batch(codebook, latents, update):
    fresh = Codebook(codebook.vectors, jnp.zeros(CODES))
    begun = update(fresh, latents, np.ones(ROWS, bool), KEY, 0.0)
    places = [
        int(np.flatnonzero((latents.reshape(-1, WIDTH) == vector).all(axis=1))[0])
        for vector in np.asarray(begun.vectors)
    ]
    assert len(set(places)) == CODES
    np.testing.assert_array_equal(begun.usage, np.ones(CODES))
    other = update(fresh, latents, np.ones(ROWS, bool), jax.random.key(1), 0.0)
    assert not np.array_equal(other.vectors, begun.vectors)


def test_padding_rows_have_no_say(codebook, latents, update):
    mask = np.array([True, True, False])
    noise = latents.copy()
    noise[2] = unit(np.random.default_rng(5), TOKENS, WIDTH)
    for usage, revive_below in ((1.0, 0.0), (0.0, 0.5)):
        book = Codebook(codebook.vectors, jnp.full((CODES,), usage, jnp.float32))
        jax.tree.map(
            np.testing.assert_array_equal,
            update(book, latents, mask, KEY, revive_below),
            update(book, noise, mask, KEY, revive_below),
        )
    nothing = update(codebook, latents, np.zeros(ROWS, bool), KEY, 0.5)
    jax.tree.map(np.testing.assert_array_equal, nothing, codebook)


def test_gradients_pass_straight_through_and_perplexity_counts_codes(codebook, latents):
    target = jnp.asarray(unit(np.random.default_rng(7), ROWS, TOKENS, WIDTH))

    def loss(x):
        chosen = take_codes(nearest_codes(x, codebook.vectors), codebook.vectors)
        return jnp.sum(target * straight_through(x, chosen)), chosen

    (value, chosen), grad = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(latents))
    np.testing.assert_allclose(value, jnp.sum(target * chosen), rtol=1e-6)
    np.testing.assert_array_equal(grad, target)
    np.testing.assert_allclose(perplexity(jnp.full((CODES,), 7.0)), CODES, rtol=1e-6)
    assert perplexity(jnp.asarray([0.0, 5.0, 0.0])) == 1.0
    np.testing.assert_allclose(perplexity(jnp.asarray([1.0, 3.0])), 4 / 3**0.75, rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: normalize(x).sum())(jnp.zeros(3))).all()
