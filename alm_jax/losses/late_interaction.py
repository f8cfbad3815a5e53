"""Contrast of an audio that has several vectors with a text that has one: the nearest of them counts.

BLIP-2's image-text contrastive loss (Li et al. 2023, https://arxiv.org/abs/2301.12597, section 3.2, and its code),
with audio for images; "late interaction" after ColBERT (arXiv 2004.12832), where each vector of one side takes its
nearest of the other.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from alm_jax.losses.classification import soft_cross_entropy
from alm_jax.losses.contrastive.reference import MASKED_LOGIT


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
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(l_a + l_t) / 2 with logits s max_k q_ik . t_j, summed over the real rows; the weight is their number.

    l_a[i] is the cross-entropy of row i over all real texts, l_t[j] that of column j over all real audios, each
    against (1 - e) p + e / n: p is even over the row's ``group`` (the row alone, where None), e ``label_smoothing``
    and n the number of real candidates, as in `torch.nn.functional.cross_entropy(label_smoothing=e)`.

    Inside ``shard_map`` or ``pmap`` over ``axis_name`` the arrays are one device's rows, and the candidates are those
    of all devices; sum and weight are the local ones, to be differentiated as `alm_jax.losses.contrastive.onesided`
    says.
    """
    mask = jnp.ones(query_emb.shape[0], bool) if mask is None else mask
    rows = jnp.arange(query_emb.shape[0])
    if axis_name is not None:
        rows += lax.axis_index(axis_name) * query_emb.shape[0]
    group = rows if group is None else group

    def gather(x: Array) -> Array:
        return x if axis_name is None else lax.all_gather(x, axis_name, tiled=True)

    query_emb = jnp.where(mask[:, None, None], query_emb, 0)
    text_emb = jnp.where(mask[:, None], text_emb, 0)
    candidates = gather(mask)
    positive = (group[:, None] == gather(group)[None, :]) & candidates[None, :]
    even = positive / jnp.maximum(jnp.sum(positive, axis=1, keepdims=True), 1)
    spread = candidates[None, :] / jnp.maximum(jnp.sum(candidates), 1)
    targets = (1 - label_smoothing) * even + label_smoothing * spread

    def judge(similarity: Array) -> Array:
        logits = logit_scale.astype(jnp.float32) * similarity
        logits = jnp.where(candidates[None, :], logits, MASKED_LOGIT)
        return soft_cross_entropy(logits, targets, mask=mask)[0]

    to_text = max_similarity(query_emb, gather(text_emb))
    to_audio = to_text if axis_name is None else max_similarity(gather(query_emb), text_emb)
    return (judge(to_text) + judge(to_audio.T)) / 2, jnp.sum(mask, dtype=jnp.float32)
