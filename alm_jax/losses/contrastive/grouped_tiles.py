"""Blocks of the pair matrix whose positives are all pairs with equal ids, tile by tile (``tiles`` has the rest)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from alm_jax.losses.contrastive.tiles import PADDING, multiply, visit_tiles
from alm_jax.losses.sums import MASKED_LOGIT, LogSumExp, merge
from alm_jax.types import PyTree


def grouped_statistics(
    rows: PyTree, cols: PyTree, row_sums: PyTree, col_sums: PyTree, *, scale: Float[Array, ""], tile: int
) -> tuple[PyTree, PyTree]:
    """A visit: ``rows`` = (audio_emb [r E], ids [r]), ``cols`` = (text_emb [c E], ids [c]).

    The sums of rows are (LogSumExp, sum of the positive logits, number of positives), those of columns LogSumExp.
    """

    def visit(row: PyTree, col: PyTree, row_sums: PyTree, col_sums: PyTree) -> tuple[PyTree, PyTree]:
        (audio, audio_id), (text, text_id) = row, col
        logits = scale * multiply(audio, text, (1, 1))
        positive = audio_id[:, None] == text_id[None, :]
        by_row = jnp.where(text_id[None, :] != PADDING, logits, MASKED_LOGIT)
        by_col = jnp.where(audio_id[:, None] != PADDING, logits, MASKED_LOGIT)
        row_part = (
            log_sum_exp(by_row, axis=1),
            jnp.sum(jnp.where(positive, logits, 0.0), axis=1),
            jnp.sum(positive, axis=1, dtype=jnp.float32),
        )
        return merge(row_sums, row_part), merge(col_sums, log_sum_exp(by_col, axis=0))

    return visit_tiles(visit, rows, cols, row_sums, col_sums, tile=tile)


def grouped_gradients(
    rows: PyTree, cols: PyTree, d_audio: PyTree, d_text: PyTree, *, scale: Float[Array, ""], tile: int
) -> tuple[PyTree, PyTree]:
    """A visit: ``rows`` = (audio_emb, ids, row_lse, weight of a positive), ``cols`` = (text_emb, ids, col_lse).

    Adds G text_emb and G^T audio_emb, where G[i, j] = exp(l - row_lse[i]) + exp(l - col_lse[j]), less weight[i] for
    positives; see ``tiles.tile_gradients``.
    """

    def visit(row: PyTree, col: PyTree, d_row: Array, d_col: Array) -> tuple[Array, Array]:
        (audio, audio_id, row_lse, weight), (text, text_id, col_lse) = row, col
        logits = scale * multiply(audio, text, (1, 1))
        positive = audio_id[:, None] == text_id[None, :]
        grad = jnp.exp(logits - row_lse[:, None]) + jnp.exp(logits - col_lse[None, :])
        grad = (grad - jnp.where(positive, weight[:, None], 0.0)).astype(audio.dtype)
        return d_row + multiply(grad, text, (1, 0)), d_col + multiply(grad, audio, (0, 0))

    return visit_tiles(visit, rows, cols, d_audio, d_text, tile=tile)


def log_sum_exp(logits: Float[Array, "r c"], *, axis: int) -> LogSumExp:
    """Log-sum-exp of one tile over ``axis``."""
    peak = jnp.max(logits, axis=axis)
    return LogSumExp(peak, jnp.sum(jnp.exp(logits - jnp.expand_dims(peak, axis)), axis=axis))
