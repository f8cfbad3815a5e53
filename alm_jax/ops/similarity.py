"""Normalisation of vectors, so that their products are cosines."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def unit_vectors(x: Float[Array, "*B E"]) -> Float[Array, "*B E"]:
    """x / ||x|| over the last axis, in float32 or wider; a zero stays zero."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))
