"""The losses over softmaxes of rows and columns, tiled: InfoNCE, with several positives, with hard negatives.

All of them are sum_i (row_lse[i] + col_lse[i]) / 2 - (mean of the positive logits of i), and so share one
pass forward, over the log-sum-exps, and one backward, over the gradient of the logits. Neither stores a logit:
between the passes only the embeddings and two numbers a pair are kept. The gradient of the scale is free, as
sum_ij G[i, j] a_i . t_j = sum_i a_i . (G t)_i.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alm_jax.losses.contrastive import grouped_tiles, kernel, tiles
from alm_jax.losses.contrastive.plan import Plan
from alm_jax.losses.sums import LogSumExp
from alm_jax.types import PyTree


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def softmax_sum(
    plan: Plan,
    grouped: bool,
    audio_emb: Float[Array, "b E"],
    text_emb: Float[Array, "b E"],
    scale: Float[Array, ""],
    ids: Int[Array, " b"],
    extra_lse: Float[Array, " b"] | None,
) -> Float[Array, ""]:
    """Sum over this device's real rows of (l_a + l_t) / 2; summed over devices it is that of the batch.

    Args:
        plan: a tiled form.
        grouped: whether ids may stand for several rows, all positives of each other.
        ids: -1 is padding, whose embeddings must be zero.
        extra_lse: log-sum-exp of logits that only the row's own softmax over texts has besides.

    Differentiable in the embeddings, ``scale`` and ``extra_lse``; the cotangent must be the same on all devices.
    """
    return forward(plan, grouped, audio_emb, text_emb, scale, ids, extra_lse)[0]


def forward(
    plan: Plan,
    grouped: bool,
    audio_emb: Array,
    text_emb: Array,
    scale: Array,
    ids: Array,
    extra_lse: Array | None,
) -> tuple[Array, PyTree]:
    """The sum, and what the backward pass needs."""
    real = ids != tiles.PADDING
    count = None
    finish = (lambda _, lse: lse.value(),) * 2
    if grouped:
        if plan.kernel:
            kernel.announce_no_kernel("several positives of a row")
        (row_lse, positives, count), col_lse = plan.sweep(
            functools.partial(grouped_tiles.grouped_statistics, scale=scale, tile=plan.tile),
            (audio_emb, ids),
            (text_emb, ids),
            empty=(lambda n: (LogSumExp.empty(n), jnp.zeros(n), jnp.zeros(n)), LogSumExp.empty),
            finish=(lambda _, sums: (sums[0].value(), *sums[1:]), finish[1]),
        )
        positive = positives / jnp.maximum(count, 1)
    else:
        row_lse, col_lse = plan.sweep(
            statistics_visit(plan, scale),
            (audio_emb, ids),
            (text_emb, ids),
            empty=(LogSumExp.empty, LogSumExp.empty),
            finish=finish,
        )
        positive = scale * jnp.sum(audio_emb.astype(jnp.float32) * text_emb.astype(jnp.float32), axis=-1)
    if extra_lse is not None:
        row_lse = jnp.logaddexp(row_lse, extra_lse)
    row_lse, col_lse = (jnp.where(real, lse, 0.0) for lse in (row_lse, col_lse))
    total = jnp.sum(jnp.where(real, (row_lse + col_lse) / 2 - positive, 0.0))
    return total, (audio_emb, text_emb, scale, ids, extra_lse, row_lse, col_lse, count)


def backward(plan: Plan, grouped: bool, residuals: PyTree, cotangent: Array) -> tuple[Any, ...]:
    """Cotangents of the array arguments of ``softmax_sum``."""
    audio_emb, text_emb, scale, ids, extra_lse, row_lse, col_lse, count = residuals
    half = cotangent / 2

    def zeros(size: int) -> Array:
        return jnp.zeros((size, audio_emb.shape[1]), jnp.float32)

    def finish(side: PyTree, sums: Array) -> Array:
        return jnp.where((side[1] != tiles.PADDING)[:, None], half * scale * sums, 0.0).astype(side[0].dtype)

    def finish_audio(side: PyTree, sums: Array) -> tuple[Array, Array]:
        return finish(side, sums), half * jnp.sum(side[0].astype(jnp.float32) * sums)

    rows: PyTree = (audio_emb, ids, row_lse)
    cols: PyTree = (text_emb, ids, col_lse)
    if grouped:
        visit = functools.partial(grouped_tiles.grouped_gradients, scale=scale, tile=plan.tile)
        rows = (*rows, 2 / jnp.maximum(count, 1))
    else:
        visit = gradients_visit(plan, scale)
    (d_audio, d_scale), d_text = plan.sweep(
        visit, rows, cols, empty=(zeros, zeros), finish=(finish_audio, finish)
    )
    d_extra = None
    if extra_lse is not None:
        d_extra = jnp.where(ids != tiles.PADDING, half * jnp.exp(extra_lse - row_lse), 0.0)
    return d_audio, d_text, d_scale, None, d_extra


softmax_sum.defvjp(forward, backward)


def statistics_visit(plan: Plan, scale: Array) -> Any:
    """The visit that takes a block's logits into the log-sum-exps of its rows and columns."""

    def visit(rows: PyTree, cols: PyTree, row_sums: PyTree, col_sums: PyTree) -> tuple[PyTree, PyTree]:
        (audio_emb, audio_ids), (text_emb, text_ids) = rows, cols
        at = kernel if plan.kernel else tiles
        return at.tile_statistics(
            audio_emb, text_emb, scale, audio_ids, text_ids, row_sums, col_sums, tile=plan.tile
        )

    return visit


def gradients_visit(plan: Plan, scale: Array) -> Any:
    """The visit that adds a block's share to the gradients of its rows and columns."""

    def visit(rows: PyTree, cols: PyTree, d_audio: PyTree, d_text: PyTree) -> tuple[PyTree, PyTree]:
        (audio_emb, audio_ids, row_lse), (text_emb, text_ids, col_lse) = rows, cols
        at = kernel if plan.kernel else tiles
        return at.tile_gradients(
            audio_emb,
            text_emb,
            scale,
            audio_ids,
            text_ids,
            row_lse,
            col_lse,
            d_audio,
            d_text,
            tile=plan.tile,
        )

    return visit


def block_functions(plan: Plan) -> Any:
    """The module with the tile functions that ``plan`` runs on."""
    if not plan.kernel:
        return tiles
    # Pallas takes a while to load, and few programs need it.
    from alm_jax.losses.contrastive import kernel

    return kernel
