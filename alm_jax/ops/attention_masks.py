"""Attention masks of language models: causal, and with a prefix that is read in both directions.

Masks for `alm_jax.ops.attention.attend`, [*B 1 L L], True where the query (row) may attend to the key (column).
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool


def causal_mask(mask: Bool[Array, "*B L"]) -> Bool[Array, "*B 1 L L"]:
    """Every token attends to itself and to the real tokens before it. ``mask`` is True for real tokens."""
    return prefix_lm_mask(mask, jnp.zeros_like(mask))


def prefix_lm_mask(mask: Bool[Array, "*B L"], prefix: Bool[Array, "*B L"]) -> Bool[Array, "*B 1 L L"]:
    """Every token attends to the real tokens of the prefix, and to itself and the real tokens before it.

    Raffel et al. 2020 (arXiv 1910.10683, section 3.2.1): a prefix, of audio or of text, is read in both directions,
    what follows is written from left to right. VALL-E's code masks phonemes and codes so.

    ``mask`` is True for real tokens; ``prefix`` is True for those of the prefix, which come before the others.
    """
    length = mask.shape[-1]
    # [L, L], a lower triangle, with the batch's axes before it.
    causal = jnp.tril(jnp.ones((length, length), bool)).reshape(*(1,) * (mask.ndim - 1), length, length)
    visible = mask[..., None, :] & (causal | prefix[..., None, :])
    return visible[..., None, :, :]
