"""Masked language modelling: hides tokens that a model must predict, a pure function of a key."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class MaskedTokens(NamedTuple):
    """Token ids with some of them replaced."""

    tokens: Int[Array, "*B L"]
    chosen: Bool[Array, "*B L"]
    """True for the chosen tokens, replaced or not, on which the loss is computed."""


def mask_tokens(
    tokens: Int[Array, "*B L"],
    mask: Bool[Array, "*B L"],
    key: Array,
    *,
    mask_id: int,
    vocab_size: int,
    proportion: float = 0.15,
) -> MaskedTokens:
    """Chooses tokens, and replaces each by ``mask_id`` (80 %), by a random word (10 %), or keeps it (10 %).

    BERT (Devlin et al. 2018, arXiv 1810.04805, section 3.1). Each token is chosen independently, at every call, as
    in RoBERTa (arXiv 1907.11692, section 4.1). ``mask`` is True for the tokens that may be chosen: real ones that are
    not special.

    Raises:
      ValueError: unless 0 < proportion <= 1 and 0 <= mask_id < vocab_size.
    """
    if not (0 < proportion <= 1 and 0 <= mask_id < vocab_size):
        raise ValueError(
            f"a proportion of {proportion} masked by the id {mask_id} of {vocab_size}; expected a proportion in (0, 1] "
            "and an id of the vocabulary"
        )
    key_chosen, key_action, key_word = jax.random.split(key, 3)
    chosen = mask & (jax.random.uniform(key_chosen, tokens.shape) < proportion)
    action = jax.random.uniform(key_action, tokens.shape)
    word = jax.random.randint(key_word, tokens.shape, 0, vocab_size, tokens.dtype)
    altered = jnp.where(action < 0.8, mask_id, jnp.where(action < 0.9, word, tokens))
    return MaskedTokens(jnp.where(chosen, altered, tokens).astype(tokens.dtype), chosen)
