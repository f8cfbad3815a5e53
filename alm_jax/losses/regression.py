"""Regression of latents: the distance between predicted and true embeddings, as numbers or as directions."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from alm_jax.losses.absolute import absolute
from alm_jax.losses.sums import add_up

_TINY = 1e-24
"""Lower bound of the product of two squared lengths under the root that a cosine is divided by."""


def latent_regression(
    prediction: Float[Array, "B T D"],
    target: Float[Array, "B T D"],
    *,
    l1_weight: float,
    l2_weight: float,
    mask: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The survey's L_am: the mean over dimensions of a |z^ - z| + b (z^ - z)^2, summed over the real frames.

    L_am = (1/T)(1/L) sum_t sum_l a ||z^_tl - z_tl||_1 + b ||z^_tl - z_tl||_2 (arXiv 2501.15177, "Generative
    Objectives"), a = ``l1_weight``, b = ``l2_weight``. Of a single number the two norms printed are the same, so
    the second is read as the squared error that the text calls L2. The weight is the number of real frames;
    ``mask`` is True for them. In float32.
    """
    mask = jnp.ones(prediction.shape[:2], bool) if mask is None else mask
    real = mask[..., None]
    prediction = jnp.where(real, prediction, 0).astype(jnp.float32)
    error = prediction - jnp.where(real, target, 0).astype(jnp.float32)
    loss = jnp.mean(l1_weight * absolute(error) + l2_weight * jnp.square(error), axis=-1)
    return jnp.sum(loss), jnp.sum(mask, dtype=jnp.float32)


def cosine_distance(
    prediction: Float[Array, "B N D"],
    target: Float[Array, "B N D"],
    *,
    mask: Bool[Array, "B N"] | None = None,
    by_row: bool = False,
) -> tuple[Float[Array, "*rows"], Float[Array, "*rows"]]:
    """1 - cos(z^, z), summed over the real tokens; the weight is their number. In float32.

    With ``by_row`` both are of each row, [B].

    The loss with which BEATs' tokenizer learns from its teacher (Chen et al. 2022, https://arxiv.org/abs/2212.09058,
    equation 6). For vectors of length 1 it is half of their squared distance. A vector of length 0 has the cosine 0.
    """
    mask = jnp.ones(prediction.shape[:2], bool) if mask is None else mask
    real = mask[..., None]
    # Vectors that do not count are replaced by a direction with a finite gradient.
    prediction = jnp.where(real, prediction, 1).astype(jnp.float32)
    target = jnp.where(real, target, 1).astype(jnp.float32)
    product = jnp.sum(prediction * target, axis=-1)
    squares = jnp.sum(jnp.square(prediction), axis=-1) * jnp.sum(jnp.square(target), axis=-1)
    cosine = product * lax.rsqrt(jnp.maximum(squares, _TINY))
    return add_up(jnp.where(mask, 1 - cosine, 0), by_row=by_row), add_up(mask, by_row=by_row)
