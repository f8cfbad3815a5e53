"""Contrastive loss between audios of several vectors and texts of one: the audio vector nearest to the text counts.

BLIP-2's image-text contrastive loss (Li et al. 2023, https://arxiv.org/abs/2301.12597, section 3.2, and its code),
with audio for images; "late interaction" after ColBERT (arXiv 2004.12832), where each vector of one side takes its
nearest of the other.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from alm_jax.losses.classification import soft_cross_entropy
from alm_jax.losses.sums import MASKED_LOGIT


def max_similarity(query_emb: Float[Array, "b K E"], text_emb: Float[Array, "c E"]) -> Float[Array, "b c"]:
    """max_k q_ik . t_j, in float32; audio rows by text columns. All b c K products are in memory."""
    query, text = query_emb.astype(jnp.float32), text_emb.astype(jnp.float32)
    return jnp.max(jnp.einsum("ike,je->ijk", query, text, precision=lax.Precision.HIGHEST), axis=-1)


def max_similarity_infonce(
    query_emb: Float[Array, "b K E"],
    text_emb: Float[Array, "b E"],
    logit_scale: Float[Array, ""],
    *,
    group: Int[Array, " b"] | None = None,
    mask: Bool[Array, " b"] | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(l_a + l_t) / 2 with logits s max_k q_ik . t_j, summed over the real rows; the weight is their number.

    l_a[i] is the cross-entropy of row i over all real texts, l_t[j] that of column j over all real audios, each
    against (1 - e) p + e / n: p is even over the row's ``group`` (the row alone, where None), e ``label_smoothing``
    and n the number of real candidates, as in `torch.nn.functional.cross_entropy(label_smoothing=e)`.
    """
    mask = jnp.ones(query_emb.shape[0], bool) if mask is None else mask
    group = jnp.arange(query_emb.shape[0]) if group is None else group
    query_emb = jnp.where(mask[:, None, None], query_emb, 0)
    text_emb = jnp.where(mask[:, None], text_emb, 0)
    positive = (group[:, None] == group[None, :]) & mask[None, :]
    even = positive / jnp.maximum(jnp.sum(positive, axis=1, keepdims=True), 1)
    spread = mask[None, :] / jnp.maximum(jnp.sum(mask), 1)
    targets = (1 - label_smoothing) * even + label_smoothing * spread

    def judge(similarity: Array) -> Array:
        logits = logit_scale.astype(jnp.float32) * similarity
        logits = jnp.where(mask[None, :], logits, MASKED_LOGIT)
        return soft_cross_entropy(logits, targets, mask=mask)[0]

    similarity = max_similarity(query_emb, text_emb)
    return (judge(similarity) + judge(similarity.T)) / 2, jnp.sum(mask, dtype=jnp.float32)
