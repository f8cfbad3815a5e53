"""The log-sum-exps of a block of the pair matrix on a Hopper GPU, as a Pallas (Mosaic GPU) kernel.

No logit leaves the registers. A thread block is one warpgroup: it takes ``TILE`` audio rows through a stretch of text
columns, tile by tile. The copy engine brings both sides to shared memory a few steps ahead of the matrix units
(wgmma), whose products stay in registers, where the rows' peaks and totals run on in base 2. Shared memory and
registers leave room for two thread blocks an SM, so that one has exponentials to do while the other multiplies.

The columns' sums of a tile of rows go to device memory and are merged there; rows are taken in groups, so that this
is a few numbers a column. The gradients are XLA's tiles (``kernel`` says so): there is no second kernel.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import ManualAxisType
from jaxtyping import Array, Float, Int

from alm_jax.losses.sums import MASKED_LOGIT, LogSumExp, merge, vary

TILE = 128
"""Rows and columns of a tile: its float32 products take 128 of a thread's 255 registers."""
DEPTH = 64
"""Columns of the embedding multiplied in one step: a row of them is one 128-byte swizzle of shared memory."""
STAGES = 3
"""Steps in flight: 2 x 128 x 64 bfloat16 each, 96 KiB of the 227 that two thread blocks share."""
ROW_TILES = 32
"""Tiles of rows in a group; the columns' sums on the way to be merged are as many numbers a column."""
THREAD_BLOCKS = 256
"""Number of thread blocks, about two an SM (132 on H100 and H200): the columns are cut into stretches to reach it."""
LOG2_E = math.log2(math.e)


def is_supported(device_kind: str, dtype: str, width: int) -> bool:
    """Whether the kernel runs on that device with such embeddings: Hopper, bfloat16, a multiple of ``DEPTH``."""
    hopper = any(name in device_kind for name in ("H100", "H200", "GH200"))
    return hopper and dtype == "bfloat16" and width % DEPTH == 0


def block_statistics(
    audio_emb: Float[Array, "r E"],
    text_emb: Float[Array, "c E"],
    scale: Float[Array, ""],
    audio_ids: Int[Array, " r"],
    text_ids: Int[Array, " c"],
    rows: LogSumExp,
    cols: LogSumExp,
    *,
    interpret: Any = False,
) -> tuple[LogSumExp, LogSumExp]:
    """``tiles.tile_statistics`` of bfloat16 embeddings; ``interpret`` is ``plgpu.kernel``'s."""
    num_rows, num_cols = audio_emb.shape[0], text_emb.shape[0]
    row_tiles = min(ROW_TILES, -(-num_rows // TILE))
    num_groups = -(-num_rows // (row_tiles * TILE))
    col_tiles = -(-num_cols // TILE)
    stretches = min(col_tiles, max(1, THREAD_BLOCKS // row_tiles))
    tiles_each = -(-col_tiles // stretches)
    stretches = -(-col_tiles // tiles_each)
    audio, row_bias = _fill(audio_emb, audio_ids, num_groups * row_tiles * TILE)
    text, col_bias = _fill(text_emb, text_ids, stretches * tiles_each * TILE)
    factor = jnp.full((TILE,), scale.astype(jnp.float32) * LOG2_E)
    audio, row_bias, text, col_bias, factor = vary(
        (audio, row_bias, text, col_bias, factor), (audio, text, factor)
    )
    call = _statistics_call(row_tiles, stretches, tiles_each, audio, interpret)

    def visit(state: LogSumExp, group: tuple[Array, Array]) -> tuple[LogSumExp, LogSumExp]:
        row_peak, row_total, col_peak, col_total = call(*group, text.T, col_bias, factor)
        group_rows = _merge_all(row_peak, row_total)
        return merge(state, _merge_all(col_peak, col_total)), group_rows

    groups = (
        audio.reshape(num_groups, row_tiles * TILE, -1),
        row_bias.reshape(num_groups, row_tiles * TILE),
    )
    empty = vary(LogSumExp.empty(text.shape[0]), (audio, text))
    block_cols, block_rows = lax.scan(visit, empty, groups)
    block_rows = LogSumExp(*(x.reshape(-1)[:num_rows] for x in block_rows))
    block_cols = LogSumExp(*(x[:num_cols] for x in block_cols))
    return merge(rows, block_rows), merge(cols, block_cols)


def _statistics_call(row_tiles: int, stretches: int, tiles_each: int, audio: Array, interpret: Any) -> Any:
    """The kernel over one group of rows: (audio, row_bias, text^T, col_bias, factor) -> sums."""
    num_rows, num_cols = row_tiles * TILE, stretches * tiles_each * TILE
    varying = ManualAxisType(varying=jax.typeof(audio).manual_axis_type.varying)
    rows = jax.ShapeDtypeStruct((stretches, num_rows), jnp.float32, manual_axis_type=varying)
    cols = jax.ShapeDtypeStruct((row_tiles, num_cols), jnp.float32, manual_axis_type=varying)
    transforms = (plgpu.TilingTransform((8, DEPTH)), plgpu.SwizzleTransform(128))

    def stages(*shape: int) -> Any:
        return plgpu.SMEM((STAGES, *shape), jnp.bfloat16, transforms=transforms)

    numbers = plgpu.SMEM((TILE,), jnp.float32)
    return plgpu.kernel(
        functools.partial(_statistics_kernel, tiles_each=tiles_each, depth_steps=audio.shape[1] // DEPTH),
        out_type=(rows, rows, cols, cols),
        grid=(row_tiles, stretches),
        grid_names=("row_tile", "stretch"),
        scratch_types={
            "audio_stages": stages(TILE, DEPTH),
            "text_stages": stages(DEPTH, TILE),
            "arrived": plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
            "numbers_in": [numbers, numbers, numbers],
            "numbers_arrived": plgpu.Barrier(num_barriers=3),
            "numbers_out": [numbers, numbers],
        },
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup
        ),
        kernel_name="contrastive_statistics",
        interpret=interpret,
    )


def _statistics_kernel(
    audio: Any,
    row_bias: Any,
    text: Any,
    col_bias: Any,
    factor: Any,
    row_peak: Any,
    row_total: Any,
    col_peak: Any,
    col_total: Any,
    *,
    audio_stages: Any,
    text_stages: Any,
    arrived: Any,
    numbers_in: Any,
    numbers_arrived: Any,
    numbers_out: Any,
    tiles_each: int,
    depth_steps: int,
) -> None:
    row_tile, stretch = lax.axis_index("row_tile"), lax.axis_index("stretch")
    num_steps = tiles_each * depth_steps
    own_rows = pl.ds(row_tile * TILE, TILE)

    def cols_of(tile: Any) -> Any:
        return pl.ds((stretch * tiles_each + tile) * TILE, TILE)

    def fetch(step: Any) -> None:
        tile, slot = lax.div(step, depth_steps), lax.rem(step, STAGES)
        depth = pl.ds(lax.rem(step, depth_steps) * DEPTH, DEPTH)
        plgpu.copy_gmem_to_smem(audio.at[own_rows, depth], audio_stages.at[slot], arrived.at[slot])
        plgpu.copy_gmem_to_smem(text.at[depth, cols_of(tile)], text_stages.at[slot], arrived.at[slot])

    def fetch_numbers(source: Any, index: int) -> None:
        plgpu.copy_gmem_to_smem(source, numbers_in[index], numbers_arrived.at[index])

    fetch_numbers(factor, 0)
    fetch_numbers(row_bias.at[own_rows], 1)
    for step in range(min(STAGES - 1, num_steps)):
        fetch(jnp.int32(step))
    for index in range(2):
        plgpu.barrier_wait(numbers_arrived.at[index])

    def take_in(tile: Any, rows: tuple[Array, Array]) -> tuple[Array, Array]:
        fetch_numbers(col_bias.at[cols_of(tile)], 2)

        def multiply(products: Any) -> Array:
            @pl.loop(0, depth_steps)
            def _(depth_step: Any) -> None:
                step = tile * depth_steps + depth_step
                slot = lax.rem(step, STAGES)
                plgpu.barrier_wait(arrived.at[slot])
                plgpu.wgmma(products, audio_stages.at[slot], text_stages.at[slot])
                # All products but this step's are done: its predecessor's stage is free.
                plgpu.wgmma_wait(1)

                @pl.when(step + STAGES - 1 < num_steps)
                def _() -> None:
                    fetch(step + STAGES - 1)

            return products[...]

        logits = pl.run_scoped(multiply, plgpu.ACC((TILE, TILE), jnp.float32))
        logits = logits * lax.broadcast_in_dim(numbers_in[0][...], (TILE, TILE), (1,))
        plgpu.barrier_wait(numbers_arrived.at[2])

        old_peak, old_total = rows
        by_row = logits + lax.broadcast_in_dim(numbers_in[2][...], (TILE, TILE), (1,))
        peak = jnp.maximum(old_peak, jnp.max(by_row, axis=1))
        total = jnp.sum(jnp.exp2(by_row - lax.broadcast_in_dim(peak, (TILE, TILE), (0,))), axis=1)
        rows = peak, old_total * jnp.exp2(old_peak - peak) + total

        by_col = logits + lax.broadcast_in_dim(numbers_in[1][...], (TILE, TILE), (0,))
        peak = jnp.max(by_col, axis=0)
        total = jnp.sum(jnp.exp2(by_col - lax.broadcast_in_dim(peak, (TILE, TILE), (1,))), axis=0)
        _store((peak, total), (col_peak, col_total), (row_tile, cols_of(tile)), numbers_out)
        return rows

    rows = (jnp.full((TILE,), MASKED_LOGIT, jnp.float32), jnp.zeros((TILE,), jnp.float32))
    rows = lax.fori_loop(0, tiles_each, take_in, rows)
    _store(rows, (row_peak, row_total), (stretch, own_rows), numbers_out)
    plgpu.wait_smem_to_gmem(0)


def _store(values: Any, outputs: Any, where: Any, staging: Any) -> None:
    """Numbers from registers to device memory, through shared memory once the last copy has left it."""
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    for value, stage in zip(values, staging, strict=True):
        stage[...] = value
    plgpu.commit_smem()
    for stage, output in zip(staging, outputs, strict=True):
        plgpu.copy_smem_to_gmem(stage, output.at[where])


def _merge_all(peaks: Array, totals: Array) -> LogSumExp:
    """Log-sum-exps [k n], base 2, merged over the first axis, to base e."""
    peak = jnp.max(peaks, axis=0)
    return LogSumExp(peak / LOG2_E, jnp.sum(totals * jnp.exp2(peaks - peak[None, :]), axis=0))


def _fill(emb: Array, ids: Array, size: int) -> tuple[Array, Array]:
    """Embeddings filled up by zeros, and what is added to the logits of each: 0, or ``MASKED_LOGIT`` for padding."""
    missing = size - emb.shape[0]
    ids = jnp.pad(ids, (0, missing), constant_values=-1)
    return jnp.pad(emb, ((0, missing), (0, 0))), jnp.where(ids < 0, MASKED_LOGIT, 0.0)
