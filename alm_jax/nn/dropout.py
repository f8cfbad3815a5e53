"""Dropout of elements, and of whole residual branches."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def dropout(x: Float[Array, "*shape"], rate: float, key: Array | None) -> Float[Array, "*shape"]:
    """Zeroes each element with probability ``rate`` and scales up the rest. Identity without a key."""
    return x if key is None else _drop(x, rate, key, x.shape)


def drop_path(x: Float[Array, "B *rest"], rate: float, key: Array | None) -> Float[Array, "B *rest"]:
    """Stochastic depth: zeroes ``x`` for whole examples and scales up the others. Identity without a key.

    Huang et al. 2016, https://arxiv.org/abs/1603.09382
    """
    return x if key is None else _drop(x, rate, key, (x.shape[0],) + (1,) * (x.ndim - 1))


def _drop(x: Array, rate: float, key: Array, shape: tuple[int, ...]) -> Array:
    keep = jax.random.bernoulli(key, 1.0 - rate, shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))
