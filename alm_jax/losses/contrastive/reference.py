"""The contrastive losses in their plain form: the whole [B B] matrix of pairs in one global view.

Rows and columns are named by ids: a pair with equal ids is a positive, -1 is padding, whose embeddings are zero.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alm_jax.losses.sums import MASKED_LOGIT


def products(audio_emb: Float[Array, "b E"], text_emb: Float[Array, "c E"]) -> Float[Array, "b c"]:
    """a_i . t_j, in float32 whatever the embeddings are."""
    audio, text = audio_emb.astype(jnp.float32), text_emb.astype(jnp.float32)
    return jnp.einsum("ie,je->ij", audio, text, precision=jax.lax.Precision.HIGHEST)


def softmax_sum(
    audio_emb: Float[Array, "B E"],
    text_emb: Float[Array, "B E"],
    scale: Float[Array, ""],
    ids: Int[Array, " B"],
    extra_lse: Float[Array, " B"] | None = None,
) -> Float[Array, ""]:
    """Sum over real rows of (l_a + l_t) / 2.

    l_a[i] is the mean of -log softmax_j(s a_i . t_j) over the positives j of i, and l_t[i] that of
    -log softmax_j(s a_j . t_i). ``extra_lse`` is the log-sum-exp of logits that row i has beside those of the texts.
    """
    real = ids != -1
    logits = scale * products(audio_emb, text_emb)
    logits = jnp.where(real[:, None] & real[None, :], logits, MASKED_LOGIT)
    positive = (ids[:, None] == ids[None, :]) & real[:, None]
    count = jnp.maximum(jnp.sum(positive, axis=1), 1)
    positive_logit = jnp.sum(jnp.where(positive, logits, 0.0), axis=1) / count
    audio_lse = jax.nn.logsumexp(logits, axis=1)
    if extra_lse is not None:
        audio_lse = jnp.logaddexp(audio_lse, extra_lse)
    text_lse = jax.nn.logsumexp(logits, axis=0)
    return jnp.sum(jnp.where(real, (audio_lse + text_lse) / 2 - positive_logit, 0.0))


def sigmoid_sum(
    audio_emb: Float[Array, "B E"],
    text_emb: Float[Array, "B E"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    ids: Int[Array, " B"],
) -> Float[Array, ""]:
    """Sum over real pairs of -log sigmoid(y (s a_i . t_j + bias)), y = 1 for positives and -1 for the others."""
    real = ids != -1
    logits = scale * products(audio_emb, text_emb) + bias
    positive = ids[:, None] == ids[None, :]
    losses = jax.nn.softplus(jnp.where(positive, -logits, logits))
    return jnp.sum(jnp.where(real[:, None] & real[None, :], losses, 0.0))
