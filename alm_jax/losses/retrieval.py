"""Audio-text retrieval as classification among candidates: the survey's L_atr.

Queries and candidates may be audio and texts or texts and audio. Both functions return (sum, weight), float32.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from alm_jax.losses.classification import cross_entropy
from alm_jax.losses.sums import MASKED_LOGIT

_BLOCK_ROWS = 256


def retrieval(
    scores: Float[Array, "B C"],
    positive: Int[Array, " B"],
    *,
    mask: Bool[Array, " B"] | None = None,
    candidate_mask: Bool[Array, " C"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """L_atr = -sum_i log( exp S(i, p_i) / sum_k exp S(i, k) ), p_i = ``positive``; the weight is the real queries.

    The survey's retrieval objective (arXiv 2501.15177, "Discriminative Objectives"): S is any score of a query and
    each of C candidates. Candidates with a False ``candidate_mask`` leave the softmax; a real query's positive is
    a real candidate. In float32.
    """
    if candidate_mask is not None:
        scores = jnp.where(candidate_mask[None, :], scores.astype(jnp.float32), MASKED_LOGIT)
    return cross_entropy(scores, positive, mask=mask)


def in_batch_retrieval(
    query_emb: Float[Array, "b E"],
    candidate_emb: Float[Array, "b E"],
    logit_scale: Float[Array, ""],
    *,
    mask: Bool[Array, " b"] | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`retrieval` of each row's own partner among those of the whole batch: S = logit_scale q . c, one direction.

    Half of symmetric InfoNCE, for a system that is queried in one direction only. Rows with a False ``mask`` are
    neither queries nor candidates, whatever they hold. It takes embeddings, so micro-batches accumulate exactly
    when those of the whole batch are kept.

    Inside ``shard_map`` or ``pmap`` over ``axis_name`` the arrays are one device's rows: candidates are gathered
    from all devices, and the sum and the weight returned are the local ones, whose sums over devices are the
    batch's. Differentiate as `alm_jax.losses.contrastive.onesided` says.

    Scores of 256 queries at a time are in memory, and are computed again for the gradients: 8 b B E FLOPs in all.
    """
    num_local = query_emb.shape[0]
    mask = jnp.ones(num_local, bool) if mask is None else mask
    query = jnp.where(mask[:, None], query_emb, 0).astype(jnp.float32)
    candidates = jnp.where(mask[:, None], candidate_emb, 0).astype(jnp.float32)
    rows, candidate_mask = jnp.arange(num_local), mask
    if axis_name is not None:
        rows = rows + lax.axis_index(axis_name) * num_local
        candidates = lax.all_gather(candidates, axis_name, tiled=True)
        candidate_mask = lax.all_gather(mask, axis_name, tiled=True)

    @jax.checkpoint
    def judge(query: Array, row: Array, is_real: Array) -> tuple[Array, Array]:
        products = jnp.dot(candidates, query, precision=lax.Precision.HIGHEST)
        scores = logit_scale.astype(jnp.float32) * products
        return retrieval(scores[None], row[None], mask=is_real[None], candidate_mask=candidate_mask)

    inputs = (query, rows, mask)
    total, weight = lax.map(lambda row: judge(*row), inputs, batch_size=min(_BLOCK_ROWS, num_local))
    return jnp.sum(total), jnp.sum(weight)
