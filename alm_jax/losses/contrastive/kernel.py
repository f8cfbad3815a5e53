"""The two functions of ``tiles`` as Pallas kernels of the device that the program is compiled for.

The device is that of the mesh in scope (inside ``shard_map`` always, elsewhere by ``jax.set_mesh``), or JAX's default
one. Where there is no kernel for it, or no tile for these embeddings, XLA's tiles are used instead, which is logged
once. Kernels are imported on first use: Pallas takes long to load.
"""

import functools
import logging

import jax
from jaxtyping import Array, Float, Int

from alm_jax.losses.contrastive import tiles
from alm_jax.losses.contrastive.tile_table import GENERATIONS, find_tiling
from alm_jax.losses.sums import LogSumExp

logger = logging.getLogger(__name__)


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
    """As ``tiles.tile_statistics``. ``tile`` is for XLA's tiles; the kernels' are in ``tile_table``."""
    arguments = (audio_emb, text_emb, scale, audio_ids, text_ids, rows, cols)
    device, dtype, width = device_kind(), str(audio_emb.dtype), audio_emb.shape[1]
    if device in GENERATIONS:
        size = (audio_emb.shape[0], text_emb.shape[0])
        tiling = find_tiling("statistics", GENERATIONS[device], dtype, width, *size)
        if tiling is not None:
            from alm_jax.losses.contrastive import kernel_tpu

            return kernel_tpu.block_statistics(*arguments, tiling=tiling)
    else:
        from alm_jax.losses.contrastive import kernel_gpu

        if kernel_gpu.is_supported(device, dtype, width):
            return kernel_gpu.block_statistics(*arguments)
    announce_fallback("log-sum-exps", device, dtype, width)
    return tiles.tile_statistics(*arguments, tile=tile)


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
    """As ``tiles.tile_gradients``; on a GPU the tiles are XLA's."""
    arguments = (audio_emb, text_emb, scale, audio_ids, text_ids, row_lse, col_lse, d_audio, d_text)
    device, dtype, width = device_kind(), str(audio_emb.dtype), audio_emb.shape[1]
    if device in GENERATIONS:
        size = (audio_emb.shape[0], text_emb.shape[0])
        tiling = find_tiling("gradients", GENERATIONS[device], dtype, width, *size)
        if tiling is not None:
            from alm_jax.losses.contrastive import kernel_tpu

            return kernel_tpu.block_gradients(*arguments, tiling=tiling)
    announce_fallback("gradients", device, dtype, width)
    return tiles.tile_gradients(*arguments, tile=tile)


def device_kind() -> str:
    """Kind of the devices that the program being traced will run on."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind


@functools.cache
def announce_fallback(what: str, device: str, dtype: str, width: int) -> None:
    """Logs once that there is no kernel."""
    logger.warning(
        "contrastive loss: no kernel for the %s of %s embeddings %d wide on %s; XLA's tiles take its place",
        what,
        dtype,
        width,
        device,
    )


@functools.cache
def announce_no_kernel(loss: str) -> None:
    """Logs once that a loss has kernels on no device."""
    logger.warning("contrastive loss: there is no kernel for %s; XLA's tiles take its place", loss)
