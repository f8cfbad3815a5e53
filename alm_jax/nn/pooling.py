"""Pooling: from the states of tokens to one vector."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def masked_mean(x: Float[Array, "B L D"], mask: Bool[Array, "B L"]) -> Float[Array, "B D"]:
    """Mean over the real tokens, summed in float32 or wider; zero for a text without any."""
    total = jnp.sum(x, axis=1, where=mask[:, :, None], dtype=jnp.promote_types(x.dtype, jnp.float32))
    return (total / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)).astype(x.dtype)
