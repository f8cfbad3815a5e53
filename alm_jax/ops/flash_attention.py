"""Attention on a TPU without an array of scores: JAX's splash kernel, padded to its tiles and cut over the mesh.

The scores exist a tile at a time in VMEM, and the backward pass computes them again from the query's log-sum-exp
(Dao et al. 2022, https://arxiv.org/abs/2205.14135). Tiles above the diagonal of a causal mask are not computed.
JAX's splash kernel skips tiles, supports grouped queries, and keeps one number a query for the backward pass; JAX's
other kernel, `flash_attention`, keeps 256 and supports a bias, but as an array of the scores' size in HBM.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from alm_jax.batch import BATCH_AXES

LANES = 128
"""Tile sizes are multiples of this in both directions."""
MAX_TILE = 640
"""Maximum queries and keys of a tile: enough for a patch grid of 512 and its class token."""
HEAD_AXIS = "tensor"
"""The mesh axis that heads are cut over (``heads`` in training/sharding.py)."""


def flash_attention(
    query: Float[Array, "B Q H K"],
    key: Float[Array, "B S G K"],
    value: Float[Array, "B S G K"],
    *,
    key_mask: Bool[Array, "B S"] | None,
    is_causal: bool,
    scale: float,
    interpret: bool = False,
) -> Float[Array, "B Q H K"]:
    """`attend` in float32 or bfloat16, without bias or dropout, with keys masked for all queries alike.

    The query is scaled before the product, in float32, and rounded to its dtype again: exact where ``scale`` is a
    power of two. The output of a query that sees no key is finite and undefined. With a mesh in scope the kernel runs
    under ``shard_map``, rows cut over the batch's axes and heads over ``tensor``: see `is_cut_evenly`.

    Args:
        key_mask: True where a key is real.
        is_causal: query i sees the keys up to i.
        interpret: runs the kernel's code on any device, slowly.
    """
    num_queries, num_keys = query.shape[1], key.shape[1]
    tile_q, tile_k = tile(num_queries), tile(num_keys)
    # Padded keys hide from real queries behind a causal mask already, where no query comes after the last key.
    if key_mask is None and num_keys % tile_k and not (is_causal and num_queries <= num_keys):
        key_mask = jnp.ones(key.shape[:2], jnp.bool_)
    accumulated = jnp.promote_types(query.dtype, jnp.float32)
    query = (query.astype(accumulated) * scale).astype(query.dtype)

    def kernel(query: Array, key: Array, value: Array, key_mask: Array | None) -> Array:
        # The kernel has heads before tokens, and no batch.
        arrays = [
            _pad(x, size, axis=1).swapaxes(1, 2)
            for x, size in ((query, tile_q), (key, tile_k), (value, tile_k))
        ]
        lengths = (arrays[0].shape[2], arrays[1].shape[2])
        run = jax.vmap(_kernel(arrays[0].shape[1], lengths, (tile_q, tile_k), is_causal, interpret))
        segments = None
        if key_mask is not None:
            # A query sees the keys of its own segment: 1 is real, 0 is padding.
            real = _pad(key_mask, tile_k, axis=1).astype(jnp.int32)
            segments = splash.SegmentIds(jnp.ones((len(real), lengths[0]), jnp.int32), real)
        if query.dtype == jnp.bfloat16:
            run = _at_default_precision(run)
        attended = run(*arrays, segments)
        return attended.swapaxes(1, 2)[:, :num_queries]

    rows, heads = _cuts(key.shape[2])
    if not rows and heads is None:
        return kernel(query, key, value, key_mask)
    cut = P(rows or None, None, heads, None)
    return jax.shard_map(
        kernel,
        in_specs=(cut, cut, cut, None if key_mask is None else P(rows or None, None)),
        out_specs=cut,
        # The kernel's results do not say which axes they vary over.
        check_vma=False,
    )(query, key, value, key_mask)


def tile(length: int) -> int:
    """Returns the tile length: as few tiles of at most ``MAX_TILE`` as possible, as short as possible."""
    return -(-length // -(-length // MAX_TILE) // LANES) * LANES


def is_cut_evenly(num_rows: int) -> bool:
    """Whether the kernel can be cut over the devices with the mesh in scope; XLA's partitioner cannot cut it.

    False where several devices have no mesh in scope, or its batch axes do not divide the rows.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.device_count() == 1
    return num_rows % math.prod(mesh.shape[axis] for axis in _cuts(1)[0]) == 0


def _cuts(num_groups: int) -> tuple[tuple[str, ...], str | None]:
    """Mesh axes that rows and heads are cut over; none where they are mapped already."""
    mesh = jax.sharding.get_abstract_mesh()
    free = [
        axis
        for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Auto and mesh.shape[axis] > 1
    ]
    rows = tuple(axis for axis in BATCH_AXES if axis in free)
    return rows, HEAD_AXIS if HEAD_AXIS in free and num_groups % mesh.shape[HEAD_AXIS] == 0 else None


def _kernel(
    num_heads: int, lengths: tuple[int, int], tiles: tuple[int, int], is_causal: bool, interpret: bool
) -> Any:
    mask: Any = masks.CausalMask(lengths) if is_causal else masks.FullMask(lengths)
    tile_q, tile_k = tiles
    return splash.make_splash_mha_single_device(
        mask=masks.MultiHeadMask([mask] * num_heads),
        block_sizes=splash.BlockSizes(
            block_q=tile_q,
            block_kv=tile_k,
            block_q_dkv=tile_q,
            block_kv_dkv=tile_k,
            # One kernel for all three gradients.
            use_fused_bwd_kernel=True,
        ),
        interpret=interpret,
    )


def _at_default_precision(run: Any) -> Any:
    """Runs ``run`` and its gradients independently of ``jax_default_matmul_precision``.

    Products of bfloat16 are exact in float32, and the compiler rejects a request for higher precision.
    """

    @jax.custom_vjp
    def plain(query: Array, key: Array, value: Array, segments: Any) -> Array:
        with jax.default_matmul_precision("default"):
            return run(query, key, value, segments)

    def forward(query: Array, key: Array, value: Array, segments: Any) -> tuple[Array, Any]:
        with jax.default_matmul_precision("default"):
            return jax.vjp(lambda *qkv: run(*qkv, segments), query, key, value)

    def backward(transposed: Any, cotangent: Array) -> tuple[Any, ...]:
        with jax.default_matmul_precision("default"):
            return (*transposed(cotangent), None)

    plain.defvjp(forward, backward)
    return plain


def _pad(x: Array, multiple: int, *, axis: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths)
