"""Regression of latents: the distance between predicted and true embeddings."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alm_jax.losses.absolute import absolute


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
