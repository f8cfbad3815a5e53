"""Masking of tokens: how many, which, and by what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.ops.token_masking import mask_tokens

VOCAB, MASK_ID = 1000, 3


def test_shares_and_places() -> None:
    tokens = jnp.full((100, 200), 7, jnp.int32)
    mask = jnp.arange(200)[None, :] < jnp.full((100, 1), 150)
    got, chosen = mask_tokens(tokens, mask, jax.random.key(0), mask_id=MASK_ID, vocab_size=VOCAB)
    assert got.dtype == jnp.int32
    assert not np.any(chosen[:, 150:])
    np.testing.assert_array_equal(np.asarray(got)[~np.asarray(chosen)], 7)
    # Four standard deviations of 15,000 and of 2,250 draws.
    assert np.mean(chosen[:, :150]) == pytest.approx(0.15, abs=0.012)
    of_chosen = np.asarray(got)[np.asarray(chosen)]
    assert np.mean(of_chosen == MASK_ID) == pytest.approx(0.8, abs=0.034)
    assert np.mean(of_chosen == 7) == pytest.approx(0.1, abs=0.026)
    words = of_chosen[(of_chosen != MASK_ID) & (of_chosen != 7)]
    assert words.min() >= 0
    assert words.max() < VOCAB
    assert len(set(words.tolist())) > 150


def test_the_key_decides() -> None:
    tokens, mask = jnp.arange(64, dtype=jnp.int32)[None, :], jnp.ones((1, 64), bool)

    def run(seed):
        return np.asarray(
            mask_tokens(tokens, mask, jax.random.key(seed), mask_id=0, vocab_size=64, proportion=0.5).chosen
        )

    np.testing.assert_array_equal(run(0), run(0))
    assert np.any(run(0) != run(1))


@pytest.mark.parametrize(("mask_id", "proportion"), [(64, 0.15), (-1, 0.15), (0, 0.0), (0, 1.5)])
def test_settings_out_of_range(mask_id: int, proportion: float) -> None:
    tokens = jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(ValueError, match="proportion"):
        mask_tokens(
            tokens,
            jnp.ones((1, 4), bool),
            jax.random.key(0),
            mask_id=mask_id,
            vocab_size=64,
            proportion=proportion,
        )
