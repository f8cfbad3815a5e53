"""Compiles the contrastive kernels alone, for absent TPUs."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from alm_jax.bench.topology import resolve
from alm_jax.errors import UserError
from alm_jax.losses.contrastive import kernel_tpu
from alm_jax.losses.contrastive.tile_table import GENERATIONS, Kernel, Tiling, find_tiling
from alm_jax.losses.sums import LogSumExp


def compile_kernel(
    topology: str, kernel: Kernel, dim: int, dtype: str, num_rows: int, num_cols: int
) -> tuple[Tiling, str]:
    """Compiles one kernel for one device of a TPU topology; returns its tiling and the ``device_kind``.

    Raises UserError where the table has no tile, and the compiler's error where it rejects the kernel.
    """
    device = resolve(topology).devices[0]
    generation = GENERATIONS.get(device.device_kind)
    tiling = None
    if generation is not None:
        tiling = find_tiling(kernel, generation, dtype, dim, num_rows, num_cols)
    if tiling is None:
        raise UserError(
            f"there is no tile for {dtype} embeddings {dim} wide on {device.device_kind}; "
            "alm_jax/losses/contrastive/tile_table.py says for which there is"
        )
    compile_tiling(kernel, tiling, device, dim, dtype, num_rows, num_cols)
    return tiling, device.device_kind


def compile_tiling(
    kernel: Kernel, tiling: Tiling, device: jax.Device, dim: int, dtype: str, num_rows: int, num_cols: int
) -> jax.stages.Compiled:
    """Compiles one kernel with a tiling for a block of pairs; raises the compiler's error where it rejects it."""

    def shape(*shape: int, dtype: str = "float32") -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=SingleDeviceSharding(device))

    audio, text = shape(num_rows, dim, dtype=dtype), shape(num_cols, dim, dtype=dtype)
    pairs = (audio, text, shape(), shape(num_rows, dtype="int32"), shape(num_cols, dtype="int32"))
    row, col = shape(num_rows), shape(num_cols)
    if kernel == "statistics":
        states = (LogSumExp(row, row), LogSumExp(col, col))
        step = jax.jit(lambda *x: kernel_tpu.block_statistics(*x, tiling=tiling))
        return step.lower(*pairs, *states).compile()
    step = jax.jit(lambda *x: kernel_tpu.block_gradients(*x, tiling=tiling), donate_argnums=(7, 8))
    return step.lower(*pairs, row, col, shape(num_rows, dim), shape(num_cols, dim)).compile()
