"""A block of the pair matrix on a TPU: the two functions of ``tiles`` as Pallas (Mosaic) kernels.

Neither logits nor their gradient leave VMEM. Both kernels go over the tiles row by row of tiles: the audio rows of
a tile row and their sums stay while the texts stream by, and the sums of *all* columns stay throughout, so that
every logit is computed once in the forward pass (2 r c E FLOPs) and once in the backward (6 r c E).

What keeps the matrix units busy, each seen in the compiler's listing (docs/performance/contrastive_kernel.md):

- the products of a chunk of columns are started before the exponentials of the chunk before them, so that the
  vector units have work beside the matrix units;
- the running peaks and totals are kept one a lane (rows) or one a sublane (columns); nothing crosses lanes until the
  last tile;
- exponentials are base 2, with log2(e) folded into the scale;
- the transposes of G^T audio run in the otherwise idle cross-lane unit.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import ManualAxisType
from jaxtyping import Array, Float, Int

from alm_jax.losses.contrastive.tile_table import LANES, SUBLANES, Tiling
from alm_jax.losses.sums import MASKED_LOGIT, LogSumExp, merge, multiply, vary

LOG2_E = math.log2(math.e)
PADDING_ID = -1


def block_statistics(
    audio_emb: Float[Array, "r E"],
    text_emb: Float[Array, "c E"],
    scale: Float[Array, ""],
    audio_ids: Int[Array, " r"],
    text_ids: Int[Array, " c"],
    rows: LogSumExp,
    cols: LogSumExp,
    *,
    tiling: Tiling,
    interpret: Any = False,
) -> tuple[LogSumExp, LogSumExp]:
    """``tiles.tile_statistics`` with this ``tiling``; ``interpret`` is ``pl.pallas_call``'s."""
    (audio, audio_ids), (text, text_ids) = _fill(tiling, (audio_emb, audio_ids), (text_emb, text_ids))
    row_bias, col_bias = (jnp.where(ids < 0, MASKED_LOGIT, 0.0)[None, :] for ids in (audio_ids, text_ids))
    arrays = (scale.astype(jnp.float32)[None] * LOG2_E, audio, text, row_bias, col_bias)
    arrays = vary(arrays, arrays)
    call = _statistics_call(tiling, arrays, interpret)

    def visit(state: LogSumExp, group: Array) -> tuple[LogSumExp, LogSumExp]:
        row_peak, row_total, col_peak, col_total = call(group[None], *arrays)
        state = merge(state, LogSumExp(row_peak[0] / LOG2_E, row_total[0]))
        parts = [LogSumExp(p[0] / LOG2_E, t[0]) for p, t in zip(col_peak, col_total, strict=True)]
        return state, functools.reduce(merge, parts)

    num_rows, num_cols = rows.peak.shape[0], cols.peak.shape[0]
    # Rows in log-sum-exp's own units; filled-up ones see only padding.
    state = vary(LogSumExp.empty(tiling.num_rows), arrays)
    if tiling.num_groups == 1:
        state, block_cols = visit(state, jnp.int32(0))
    else:
        state, block_cols = lax.scan(visit, state, jnp.arange(tiling.num_groups, dtype=jnp.int32))
    block_rows = LogSumExp(*(x[:num_rows] for x in state))
    block_cols = LogSumExp(*(x.reshape(-1)[:num_cols] for x in block_cols))
    return merge(rows, block_rows), merge(cols, block_cols)


def _statistics_call(tiling: Tiling, arrays: tuple[Array, ...], interpret: Any) -> Any:
    _, audio, _, _, _ = arrays
    width = audio.shape[1]
    p = tiling
    last_row = p.row_tiles - 1
    in_specs = [
        pl.BlockSpec(memory_space=pltpu.SMEM),
        pl.BlockSpec((p.rows, width), lambda k, i, j, group: (k * p.row_tiles + i, 0)),
        pl.BlockSpec((p.cols, width), lambda k, i, j, group: (group[0] * p.col_tiles + j, 0)),
        pl.BlockSpec((1, p.rows), lambda k, i, j, group: (0, k * p.row_tiles + i)),
        pl.BlockSpec((1, p.cols), lambda k, i, j, group: (0, group[0] * p.col_tiles + j)),
    ]
    row_out = pl.BlockSpec((1, p.rows), lambda k, i, j, group: (0, k * p.row_tiles + i))
    # A block is written where the next one differs: the columns' only during the last tile row.
    col_out = pl.BlockSpec((None, 1, p.cols), lambda k, i, j, group: (k, 0, jnp.where(i == last_row, j, 0)))
    row_shape = _shape((1, p.num_rows), jnp.float32, arrays)
    col_shape = _shape((p.num_cores, 1, p.col_tiles * p.cols), jnp.float32, arrays)
    lanes = pltpu.VMEM((p.rows, LANES), jnp.float32)
    sublanes = pltpu.VMEM((p.col_tiles, SUBLANES, p.cols), jnp.float32)
    cost = _cost(tiling, audio, products=1, exponentials=2)
    return pl.pallas_call(
        functools.partial(_statistics_kernel, tiling=tiling),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(p.num_cores, p.row_tiles, p.col_tiles),
            in_specs=in_specs,
            out_specs=[row_out, row_out, col_out, col_out],
            scratch_shapes=[lanes, lanes, lanes, sublanes, sublanes],
        ),
        out_shape=[row_shape, row_shape, col_shape, col_shape],
        compiler_params=_parameters(tiling),
        cost_estimate=cost,
        interpret=interpret,
        name="contrastive_statistics",
    )


def _statistics_kernel(
    group: Any,
    scale: Any,
    audio: Any,
    text: Any,
    row_bias: Any,
    col_bias: Any,
    row_peak_out: Any,
    row_total_out: Any,
    col_peak_out: Any,
    col_total_out: Any,
    row_peak: Any,
    row_total: Any,
    row_mask: Any,
    col_peak: Any,
    col_total: Any,
    *,
    tiling: Tiling,
) -> None:
    i, j = pl.program_id(1), pl.program_id(2)

    @pl.when(j == 0)
    def _() -> None:
        row_peak[...] = jnp.full_like(row_peak, MASKED_LOGIT)
        row_total[...] = jnp.zeros_like(row_total)
        row_mask[...] = _down_the_rows(row_bias[...])

    @pl.when(i == 0)
    def _() -> None:
        col_peak[j] = jnp.full(col_peak.shape[1:], MASKED_LOGIT, jnp.float32)
        col_total[j] = jnp.zeros(col_total.shape[1:], jnp.float32)

    factor = scale[0]

    def products(part: slice) -> Array:
        return multiply(audio[...], text[part, :], (1, 1))

    def take_in(part: slice, logits: Array) -> None:
        logits = logits * factor
        pieces = [logits[:, k : k + LANES] for k in range(0, tiling.chunk, LANES)]
        bias = col_bias[:, part]
        by_row = [x + bias[:, k * LANES : (k + 1) * LANES] for k, x in enumerate(pieces)]
        old = row_peak[...]
        peak = functools.reduce(jnp.maximum, by_row, old)
        total = row_total[...] * jnp.exp2(old - peak)
        for x in by_row:
            total = total + jnp.exp2(x - peak)
        row_peak[...], row_total[...] = peak, total
        by_col = jnp.concatenate([x + row_mask[...] for x in pieces], axis=1)
        by_col = by_col.reshape(tiling.rows // SUBLANES, SUBLANES, tiling.chunk)
        old = col_peak[j, :, part]
        peak = jnp.maximum(old, jnp.max(by_col, axis=0))
        total = col_total[j, :, part] * jnp.exp2(old - peak)
        col_peak[j, :, part] = peak
        col_total[j, :, part] = total + jnp.sum(jnp.exp2(by_col - peak[None]), axis=0)

    _pipeline(tiling, products, take_in)

    @pl.when(j == tiling.col_tiles - 1)
    def _() -> None:
        row_peak_out[...], row_total_out[...] = _join(row_peak[...].T, row_total[...].T)

    @pl.when(i == tiling.row_tiles - 1)
    def _() -> None:
        col_peak_out[...], col_total_out[...] = _join(col_peak[j], col_total[j])


def _join(peaks: Array, totals: Array) -> tuple[Array, Array]:
    """Log-sum-exps [k n], base 2, merged over the first axis: [1 n]."""
    peak = jnp.max(peaks, axis=0, keepdims=True)
    return peak, jnp.sum(totals * jnp.exp2(peaks - peak), axis=0, keepdims=True)


def block_gradients(
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
    tiling: Tiling,
    interpret: Any = False,
) -> tuple[Float[Array, "r E"], Float[Array, "c E"]]:
    """``tiles.tile_gradients`` with this ``tiling``; ``interpret`` is ``pl.pallas_call``'s.

    The gradients are added to where they are: ``d_audio`` and ``d_text`` are donated to the kernel.
    """
    num_rows, num_cols = d_audio.shape[0], d_text.shape[0]
    (audio, audio_ids, row_lse, d_audio), (text, text_ids, col_lse, d_text) = _fill(
        tiling,
        (audio_emb, audio_ids, row_lse, d_audio),
        (text_emb, text_ids, col_lse, d_text),
    )
    # Every core adds up the columns' gradients of its own rows.
    d_texts = jnp.pad(d_text[None], ((0, tiling.num_cores - 1), (0, 0), (0, 0)))
    lse = (row_lse.astype(jnp.float32)[None, :] * LOG2_E, col_lse.astype(jnp.float32)[None, :] * LOG2_E)
    ids = (audio_ids.astype(jnp.int32)[None, :], text_ids.astype(jnp.int32)[None, :])
    arrays = (scale.astype(jnp.float32)[None] * LOG2_E, audio, text, *lse, *ids)
    arrays, d_audio, d_texts = vary((arrays, d_audio, d_texts), arrays)
    call = _gradients_call(tiling, (*arrays, d_audio, d_texts), interpret)

    def visit(group: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        return tuple(call(group[None], *arrays, *sums))

    if tiling.num_groups == 1:
        d_audio, d_texts = visit(jnp.int32(0), (d_audio, d_texts))
    else:
        d_audio, d_texts = lax.fori_loop(0, tiling.num_groups, visit, (d_audio, d_texts))
    return d_audio[:num_rows], jnp.sum(d_texts, axis=0)[:num_cols]


def _gradients_call(tiling: Tiling, arrays: tuple[Array, ...], interpret: Any) -> Any:
    audio, d_audio, d_texts = arrays[1], arrays[-2], arrays[-1]
    width = audio.shape[1]
    p = tiling
    last_row, last_col = p.row_tiles - 1, p.col_tiles - 1
    row = pl.BlockSpec((p.rows, width), lambda k, i, j, group: (k * p.row_tiles + i, 0))
    col = pl.BlockSpec((p.cols, width), lambda k, i, j, group: (group[0] * p.col_tiles + j, 0))
    row_numbers = pl.BlockSpec((1, p.rows), lambda k, i, j, group: (0, k * p.row_tiles + i))
    col_numbers = pl.BlockSpec((1, p.cols), lambda k, i, j, group: (0, group[0] * p.col_tiles + j))

    def first_pass(k: Any, i: Any, j: Any, group: Any) -> tuple[Any, ...]:
        return k, group[0] * p.col_tiles + jnp.where(i == 0, j, last_col), 0

    def last_pass(k: Any, i: Any, j: Any, group: Any) -> tuple[Any, ...]:
        return k, group[0] * p.col_tiles + jnp.where(i == last_row, j, 0), 0

    return pl.pallas_call(
        functools.partial(_gradients_kernel, tiling=tiling),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(p.num_cores, p.row_tiles, p.col_tiles),
            in_specs=[
                pl.BlockSpec(memory_space=pltpu.SMEM),
                row,
                col,
                row_numbers,
                col_numbers,
                row_numbers,
                col_numbers,
                row,
                pl.BlockSpec((None, p.cols, width), first_pass),
            ],
            out_specs=[row, pl.BlockSpec((None, p.cols, width), last_pass)],
            scratch_shapes=[
                pltpu.VMEM((p.rows, LANES), jnp.float32),
                pltpu.VMEM((p.rows, LANES), jnp.int32),
                pltpu.VMEM((p.col_tiles, p.cols, width), jnp.float32),
            ],
        ),
        out_shape=[_shape(x.shape, jnp.float32, arrays) for x in (d_audio, d_texts)],
        # Counted with the prefetched scalar. A group leaves the gradients of the other groups' columns as they are.
        input_output_aliases={8: 0, 9: 1},
        compiler_params=_parameters(tiling),
        cost_estimate=_cost(tiling, audio, products=3, exponentials=2),
        interpret=interpret,
        name="contrastive_gradients",
    )


def _gradients_kernel(
    group: Any,
    scale: Any,
    audio: Any,
    text: Any,
    row_lse: Any,
    col_lse: Any,
    row_ids: Any,
    col_ids: Any,
    d_audio_in: Any,
    d_text_in: Any,
    d_audio_out: Any,
    d_text_out: Any,
    row_shift: Any,
    row_names: Any,
    d_text: Any,
    *,
    tiling: Tiling,
) -> None:
    i, j = pl.program_id(1), pl.program_id(2)

    @pl.when(j == 0)
    def _() -> None:
        d_audio_out[...] = d_audio_in[...]
        row_shift[...] = _down_the_rows(row_lse[...])
        row_names[...] = _down_the_rows(row_ids[...])

    @pl.when(i == 0)
    def _() -> None:
        d_text[j] = d_text_in[...]

    factor = scale[0]

    def products(part: slice) -> Array:
        return multiply(audio[...], text[part, :], (1, 1))

    def take_in(part: slice, logits: Array) -> None:
        logits = logits * factor
        repeats = tiling.chunk // LANES
        shift = jnp.concatenate([row_shift[...]] * repeats, axis=1)
        names = jnp.concatenate([row_names[...]] * repeats, axis=1)
        # No logit exceeds its log-sum-exps but those of padding, which must not overflow.
        grad = jnp.exp2(jnp.minimum(logits - shift, 0)) + jnp.exp2(jnp.minimum(logits - col_lse[:, part], 0))
        grad = jnp.where(names == col_ids[:, part], grad - 2, grad).astype(audio.dtype)
        d_audio_out[...] += multiply(grad, text[part, :], (1, 0))
        d_text[j, part, :] += multiply(grad, audio[...], (0, 0))

    _pipeline(tiling, products, take_in)

    @pl.when(i == tiling.row_tiles - 1)
    def _() -> None:
        d_text_out[...] = d_text[j]


def _pipeline(tiling: Tiling, products: Any, take_in: Any) -> None:
    """``take_in`` of every chunk of a tile's columns, its products one chunk ahead."""
    parts = [slice(k, k + tiling.chunk) for k in range(0, tiling.cols, tiling.chunk)]
    ahead = products(parts[0])
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        logits = ahead
        if following is not None:
            ahead = products(following)
        take_in(part, logits)


def _down_the_rows(numbers: Array) -> Array:
    """[1 R] numbers as [R LANES], each repeated along the lanes."""
    return jnp.broadcast_to(numbers, (LANES, numbers.shape[1])).T


def _fill(tiling: Tiling, rows: Any, cols: Any) -> tuple[Any, Any]:
    """Arrays [r ...] and [c ...] filled up to whole tiles: embeddings by 0, ids by -1."""

    def fill(x: Array, size: int) -> Array:
        missing = size - x.shape[0]
        if not missing:
            return x
        value = PADDING_ID if jnp.issubdtype(x.dtype, jnp.integer) else 0
        return jnp.pad(x, ((0, missing),) + ((0, 0),) * (x.ndim - 1), constant_values=value)

    return (
        jax.tree.map(lambda x: fill(x, tiling.num_rows), rows),
        jax.tree.map(lambda x: fill(x, tiling.num_cols), cols),
    )


def _shape(shape: tuple[int, ...], dtype: Any, like: Any) -> jax.ShapeDtypeStruct:
    """An output, varying over the mesh axes that any of the inputs varies over."""
    axes = frozenset[str]().union(*(jax.typeof(x).manual_axis_type.varying for x in like))
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=ManualAxisType(varying=axes))


def _parameters(tiling: Tiling) -> pltpu.CompilerParams:
    # Rows of different cores are independent; within a core the columns' sums grow from tile row to tile row.
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=tiling.vmem_bytes
    )


def _cost(tiling: Tiling, emb: Array, *, products: int, exponentials: int) -> pl.CostEstimate:
    """Estimates what one group's call costs, for the compiler's schedule around it."""
    width, size = emb.shape[1], emb.dtype.itemsize
    pairs = tiling.num_rows * tiling.col_tiles * tiling.cols
    streamed = size * width * tiling.row_tiles * tiling.num_cores * tiling.col_tiles * tiling.cols
    return pl.CostEstimate(
        flops=2 * products * pairs * width,
        transcendentals=exponentials * pairs,
        bytes_accessed=streamed + size * width * tiling.num_rows,
    )
