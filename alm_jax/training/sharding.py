"""Which array lives where: the one table from logical axis names to mesh axes.

Modules name the axes of their parameters; nothing else in the project builds a NamedSharding.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alm_jax.batch import BATCH_AXES
from alm_jax.errors import UserError
from alm_jax.nn.kv_cache import CACHE_AXES, KVCache
from alm_jax.training.mesh import AnyMesh
from alm_jax.types import PyTree

RULES: dict[str, str | None] = {
    # The width of the residual stream is what every large array has: cutting it is FSDP.
    "embed": "fsdp",
    # Of convolutions, what the width is of transformers.
    "channels": "fsdp",
    "channels_in": "tensor",
    # The inner dimensions are cut Megatron's way, so that one all-reduce a layer suffices.
    "mlp": "tensor",
    "heads": "tensor",
    "vocab": "tensor",
    "joint": "tensor",
    # An LSTM's memory cells, with their gates: a step gathers the state.
    "state": "tensor",
}
"""Logical axis -> mesh axis. A name that is absent is kept whole on every device."""


def parameter_spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
    """The PartitionSpec of one parameter.

    A dimension that its mesh axis does not divide is kept whole (a vocabulary of 50,265, say), and a mesh
    axis is used once, by the first dimension that claims it.
    """
    spec: list[str | None] = []
    for name, size in zip(axes, shape, strict=True):
        mesh_axis = RULES.get(name) if name is not None else None
        if mesh_axis in spec or mesh_axis is None or size % mesh.shape[mesh_axis]:
            mesh_axis = None
        spec.append(mesh_axis)
    return PartitionSpec(*spec)


def is_axes(leaf: Any) -> bool:
    """Whether ``leaf`` is a parameter's tuple of axis names, a leaf of the tree of axes."""
    return isinstance(leaf, tuple)


def parameter_shardings(axes: PyTree, abstract: PyTree, mesh: AnyMesh) -> PyTree:
    """NamedSharding of every parameter: ``axes`` as an objective names them, ``abstract`` with shapes."""
    return jax.tree.map(
        lambda names, leaf: NamedSharding(mesh, parameter_spec(names, leaf.shape, mesh)),
        axes,
        abstract,
        is_leaf=is_axes,
    )


def replicated(mesh: AnyMesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """The sharding of a batch: rows cut over ``data`` and ``fsdp``."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def cache_shardings(cache: KVCache, mesh: AnyMesh) -> KVCache:
    """NamedSharding of each array of a cache (of its shapes): rows as those of a batch, heads as the parameters'.

    What the mesh does not divide is kept whole.
    """

    def shard(axes: tuple[str, ...], shape: tuple[int, ...]) -> NamedSharding:
        rows = [
            BATCH_AXES if axis == "batch" and size % num_batch_shards(mesh) == 0 else None
            for axis, size in zip(axes, shape, strict=True)
        ]
        heads = parameter_spec(axes, shape, mesh)
        return NamedSharding(mesh, PartitionSpec(*(a or b for a, b in zip(rows, heads, strict=True))))

    return KVCache._make(shard(CACHE_AXES[name], leaf.shape) for name, leaf in cache._asdict().items())


def num_batch_shards(mesh: AnyMesh) -> int:
    """Pieces into which the rows of a batch are cut."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of the global batch as one global array a key."""
    sharding = batch_sharding(mesh)
    return {key: jax.make_array_from_process_local_data(sharding, rows) for key, rows in batch.items()}


def replicated_fraction(abstract: PyTree, shardings: PyTree) -> float:
    """Share of the bytes that every device of the mesh holds in full, in 0..1."""
    whole = total = 0
    for leaf, sharding in zip(jax.tree.leaves(abstract), jax.tree.leaves(shardings), strict=True):
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        total += size
        whole += size if sharding.is_fully_replicated else 0
    return whole / max(total, 1)


MAX_REPLICATED_FRACTION = 0.1


def check_sharded(abstract: PyTree, shardings: PyTree, mesh: AnyMesh) -> None:
    """Raises UserError where a mesh asks for cut parameters and most of them would be whole all the same."""
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return
    fraction = replicated_fraction(abstract, shardings)
    if fraction > MAX_REPLICATED_FRACTION:
        raise UserError(
            f"mesh {dict(mesh.shape)} asks for cut parameters, but {fraction:.0%} of their bytes would stay whole on "
            f"every device (at most {MAX_REPLICATED_FRACTION:.0%} may): choose fsdp and tensor that divide the model's "
            "widths"
        )


def fetch(x: jax.Array) -> np.ndarray:
    """A global array as NumPy, whole, on every process."""
    if x.is_fully_addressable:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
