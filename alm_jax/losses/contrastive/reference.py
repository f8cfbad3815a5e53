"""Symmetric InfoNCE, the plain form: the whole [B B] matrix of pairs in one global view."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Stands for -inf in the float32 logits: half of the lowest number, so that differences of two stay finite,
# and a softmax over nothing but padding has a value and a zero gradient where -inf would give NaN.
MASKED_LOGIT = float(jnp.finfo(jnp.float32).min) / 2


def symmetric_infonce(
    audio_emb: Float[Array, "B E"],
    text_emb: Float[Array, "B E"],
    logit_scale: Float[Array, ""],
    *,
    mask: Bool[Array, " B"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum over real pairs of (l_a + l_t) / 2, and their number: sum / weight = (1 / 2B) sum (l_a + l_t).

    l_a[i] = -log softmax_j(s a_i . t_j)[i] over the texts and l_t[i] = -log softmax_j(s a_j . t_i)[i] over
    the audios, s = logit_scale, for L2-normalised embeddings (Radford et al. 2021, arXiv 2103.00020; the
    survey arXiv 2501.15177 writes tau = 1 / s). Pairs with a False ``mask`` leave the rows and the columns of
    both softmaxes, whatever their embeddings hold; a batch of nothing else gives (0, 0). Computed in float32.
    """
    mask = jnp.ones(audio_emb.shape[0], bool) if mask is None else mask
    audio = jnp.where(mask[:, None], audio_emb, 0).astype(jnp.float32)
    text = jnp.where(mask[:, None], text_emb, 0).astype(jnp.float32)
    products = jnp.einsum("ie,je->ij", audio, text, precision=jax.lax.Precision.HIGHEST)
    logits = logit_scale.astype(jnp.float32) * products
    logits = jnp.where(mask[:, None] & mask[None, :], logits, MASKED_LOGIT)
    positive = jnp.diagonal(logits)
    audio_loss = jax.nn.logsumexp(logits, axis=1) - positive
    text_loss = jax.nn.logsumexp(logits, axis=0) - positive
    total = jnp.sum(jnp.where(mask, (audio_loss + text_loss) / 2, 0))
    return total, jnp.sum(mask, dtype=jnp.float32)
