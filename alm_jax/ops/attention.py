"""Scaled dot-product attention, the reference form that every encoder calls.

Letters as in alm_jax/types.py, and inside attention Q queries and S keys.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def attend(
    query: Float[Array, "*B Q H K"],
    key: Float[Array, "*B S H K"],
    value: Float[Array, "*B S H K"],
    *,
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Float[Array, "*B Q H K"]:
    """Attention(q, k, v) = softmax(q k^T / sqrt(K) + bias) v over any number of leading axes.

    The matrix products run in the dtype of ``query`` and accumulate in float32; bias, mask and softmax
    are float32. A query whose keys are all masked gets the plain mean of the values, never NaN.
    (Vaswani et al. 2017, equation 1.)

    Args:
        bias: added to the scores; has their rank and broadcasts to [*B H Q S].
        mask: True where a query may attend to a key; has the scores' rank and broadcasts to them.
        dropout_rate: share of attention weights that are zeroed, the rest scaled up.
        dropout_key: PRNG key; without one nothing is dropped.
    """
    scores = jnp.einsum("...qhk,...shk->...hqs", query, key, preferred_element_type=jnp.float32)
    scores = scores * (query.shape[-1] ** -0.5)
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    if dropout_rate > 0.0 and dropout_key is not None:
        keep = jax.random.bernoulli(dropout_key, 1.0 - dropout_rate, weights.shape)
        weights = jnp.where(keep, weights / (1.0 - dropout_rate), 0.0)
    return jnp.einsum("...hqs,...shk->...qhk", weights.astype(value.dtype), value)
