"""A block of the pair matrix, tile by tile: its log-sum-exps and its gradients, without ever holding it.

A block is any r audio rows by c text columns of the [B B] matrix ``l[i, j] = scale * audio_emb[i] . text_emb[j]``;
only one tile of it exists at a time. Every form but the plain ones visits blocks by these functions, and the
kernels have drop-in replacements for ``tile_statistics`` and ``tile_gradients``: same signatures, same meaning.

Ids name the rows and columns: a pair with equal ids is a positive, -1 is padding. The embedding of
padding must be zero: then it adds nothing to any gradient, and only the log-sum-exps have to leave it out.

Products of float32 embeddings are exact to float32 (``Precision.HIGHEST``), those of bfloat16 embeddings run as
bfloat16; both add up in float32, and all the rest is float32. The gradient of a logit is rounded to the dtype of
the embeddings for its products, *after* the positive's 1 has been taken off: what is left of a well-matched
pair's gradient keeps its relative precision.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from alm_jax.losses.contrastive.visits import Visit
from alm_jax.losses.sums import MASKED_LOGIT, LogSumExp, multiply
from alm_jax.types import PyTree

PADDING = -1
"""The id of padding."""

LANES = 128
"""Tiles larger than this are multiples of it, which is how wide the vector registers of a TPU are."""


def tile_statistics(
    audio_emb: Float[Array, "r E"],
    text_emb: Float[Array, "c E"],
    scale: Float[Array, ""],
    audio_ids: Int[Array, " r"],
    text_ids: Int[Array, " c"],
    rows: LogSumExp,
    cols: LogSumExp,
    *,
    tile: int,
) -> tuple[LogSumExp, LogSumExp]:
    """``rows`` (of r) and ``cols`` (of c) with the logits of this block taken in.

    Row i takes in the logits of the columns that are no padding, column j those of the rows that are none; the
    result of a padding row or column itself is finite and means nothing. ``tile`` is the most rows and columns
    of a tile; r and c need not be multiples of it. 2 r c E FLOPs.
    """

    def visit(row: Any, col: Any, row_lse: LogSumExp, col_lse: LogSumExp) -> tuple[LogSumExp, LogSumExp]:
        (audio, audio_id), (text, text_id) = row, col
        logits = scale * multiply(audio, text, (1, 1))
        by_row = jnp.where(text_id[None, :] != PADDING, logits, MASKED_LOGIT)
        peak = jnp.maximum(row_lse.peak, jnp.max(by_row, axis=1))
        total = jnp.sum(jnp.exp(by_row - peak[:, None]), axis=1)
        row_lse = LogSumExp(peak, row_lse.total * jnp.exp(row_lse.peak - peak) + total)
        by_col = jnp.where(audio_id[:, None] != PADDING, logits, MASKED_LOGIT)
        peak = jnp.maximum(col_lse.peak, jnp.max(by_col, axis=0))
        total = jnp.sum(jnp.exp(by_col - peak[None, :]), axis=0)
        return row_lse, LogSumExp(peak, col_lse.total * jnp.exp(col_lse.peak - peak) + total)

    return visit_tiles(visit, (audio_emb, audio_ids), (text_emb, text_ids), rows, cols, tile=tile)


def tile_gradients(
    audio_emb: Float[Array, "r E"],
    text_emb: Float[Array, "c E"],
    scale: Float[Array, ""],
    audio_ids: Int[Array, " r"],
    text_ids: Int[Array, " c"],
    row_lse: Float[Array, " r"],
    col_lse: Float[Array, " c"],
    d_audio: Float[Array, "r E"],
    d_text: Float[Array, "c E"],
    *,
    tile: int,
) -> tuple[Float[Array, "r E"], Float[Array, "c E"]]:
    """``d_audio + G text_emb`` and ``d_text + G^T audio_emb``, float32, of this block, where

        G[i, j] = exp(l[i, j] - row_lse[i]) + exp(l[i, j] - col_lse[j]) - 2 [audio_ids[i] == text_ids[j]]

    is the gradient of sum(row_lse) + sum(col_lse) - 2 sum(positive logits) with respect to the logits; the
    factor ``scale``, and that of the loss, are left to the caller. But for padding, an id stands once in
    ``audio_ids`` and once in ``text_ids``. ``row_lse`` and ``col_lse`` of padding must be 0; the gradient of
    padding is finite and means nothing. 6 r c E FLOPs.
    """

    def visit(row: Any, col: Any, d_row: Array, d_col: Array) -> tuple[Array, Array]:
        (audio, audio_id, row_lse), (text, text_id, col_lse) = row, col
        logits = scale * multiply(audio, text, (1, 1))
        positive = audio_id[:, None] == text_id[None, :]
        grad = jnp.exp(logits - row_lse[:, None]) + jnp.exp(logits - col_lse[None, :])
        grad = jnp.where(positive, grad - 2, grad).astype(audio.dtype)
        return d_row + multiply(grad, text, (1, 0)), d_col + multiply(grad, audio, (0, 0))

    rows, cols = (audio_emb, audio_ids, row_lse), (text_emb, text_ids, col_lse)
    return visit_tiles(visit, rows, cols, d_audio, d_text, tile=tile)


def visit_tiles(
    visit: Visit,
    rows: PyTree,
    cols: PyTree,
    row_sums: PyTree,
    col_sums: PyTree,
    *,
    tile: int,
) -> tuple[PyTree, PyTree]:
    """The accumulators of a block's rows and columns after a visit of each of its tiles.

    Args:
        visit: (rows, cols, row_sums, col_sums) of one tile -> its row_sums and col_sums, updated.
        rows, row_sums: arrays [r ...], what is known of the rows and what is added up for them.
        cols, col_sums: arrays [c ...], the same of the columns.
        tile: the most rows and columns of a tile. Uneven ones are filled up by zeros, ids by -1.

    The accumulators are updated in place, so that beside them and the inputs only one tile is in memory.
    """
    num_rows, num_cols = jax.tree.leaves(rows)[0].shape[0], jax.tree.leaves(cols)[0].shape[0]
    rows, row_sums = (cut_into_tiles(x, tile) for x in (rows, row_sums))
    cols, col_sums = (cut_into_tiles(x, tile) for x in (cols, col_sums))

    def visit_column(row_sums: PyTree, col: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        cols, col_sums = col

        def visit_tile(sums: tuple[PyTree, PyTree], row: tuple[Array, PyTree]) -> tuple[Any, None]:
            (row_sums, col_sums), (index, rows) = sums, row
            part = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), row_sums)
            part, col_sums = visit(rows, cols, part, col_sums)
            row_sums = jax.tree.map(
                lambda x, y: lax.dynamic_update_index_in_dim(x, y, index, axis=0), row_sums, part
            )
            return (row_sums, col_sums), None

        num_tiles = jax.tree.leaves(rows)[0].shape[0]
        sums, _ = lax.scan(visit_tile, (row_sums, col_sums), (jnp.arange(num_tiles), rows))
        return sums

    row_sums, col_sums = lax.scan(visit_column, row_sums, (cols, col_sums))
    return join_tiles(row_sums, num_rows), join_tiles(col_sums, num_cols)


def cut_into_tiles(tree: PyTree, tile: int) -> PyTree:
    """Arrays [n ...] as [num_tiles, size, ...] with size at most ``tile``: as even as can be, then filled up."""

    def cut(x: Array) -> Array:
        num_tiles = -(-x.shape[0] // tile)
        size = -(-x.shape[0] // num_tiles)
        size = size if size <= LANES else min(tile, -(-size // LANES) * LANES)
        padding = num_tiles * size - x.shape[0]
        if padding:
            fill = PADDING if jnp.issubdtype(x.dtype, jnp.integer) else 0
            x = jnp.pad(x, ((0, padding),) + ((0, 0),) * (x.ndim - 1), constant_values=fill)
        return x.reshape(num_tiles, size, *x.shape[1:])

    return jax.tree.map(cut, tree)


def join_tiles(tree: PyTree, size: int) -> PyTree:
    """The inverse of ``cut_into_tiles`` for arrays of ``size`` rows."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], tree)
