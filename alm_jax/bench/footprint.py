"""Memory of a training state on each device of a mesh, from shapes and shardings only: nothing is compiled.

It does not include activations and what a step makes in between (gathered kernels, merged adapters). Only the
compiler knows these (`bench/topology.py`).
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from alm_jax.bench.step import abstract_batch, build
from alm_jax.errors import UserError
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.mesh import abstract_mesh, check_batch_size
from alm_jax.training.sharding import batch_sharding, num_batch_shards
from alm_jax.types import PyTree

LARGE_BYTES = 2**24
"""Size, bytes, from which on an array that every device holds whole is reported."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Held:
    """One array."""

    kind: str
    """Kind: parameters, gradients, optimizer, average, statistics or batch."""
    path: str
    shape: tuple[int, ...]
    dtype: str
    cut: tuple[str, ...]
    """Mesh axis, or axes, that each dimension is cut over; "" for none."""
    num_bytes: int
    """Size of the whole array, bytes."""
    bytes_per_device: int
    """Size of what one device holds of it, bytes."""

    @property
    def is_replicated(self) -> bool:
        """Whether every device holds all of it."""
        return self.num_bytes == self.bytes_per_device


@dataclasses.dataclass(frozen=True, kw_only=True)
class Footprint:
    """The state and the batch of a run, as laid out on a mesh."""

    config: str
    """The config's name."""
    mesh: dict[str, int]
    arrays: tuple[Held, ...]
    num_parameters: int
    num_trained: int

    @property
    def bytes_per_device(self) -> dict[str, int]:
        """Bytes by kind."""
        found = dict.fromkeys((held.kind for held in self.arrays), 0)
        for held in self.arrays:
            found[held.kind] += held.bytes_per_device
        return found

    @property
    def total_bytes(self) -> int:
        """Bytes on one device."""
        return sum(held.bytes_per_device for held in self.arrays)

    def largest(self, count: int) -> list[Held]:
        """Parameters in the order of what one device holds of them."""
        parameters = [held for held in self.arrays if held.kind == "parameters"]
        return sorted(parameters, key=lambda held: -held.bytes_per_device)[:count]

    @property
    def replicated(self) -> list[Held]:
        """Large parameters that every device holds whole although the mesh should cut them."""
        if self.mesh["fsdp"] * self.mesh["tensor"] == 1:
            return []
        parameters = (held for held in self.arrays if held.kind == "parameters")
        return [held for held in parameters if held.is_replicated and held.num_bytes >= LARGE_BYTES]


def measure_footprint(config: ExperimentConfig, num_devices: int) -> Footprint:
    """Lays out the state and batch of ``config`` on its mesh of ``num_devices``.

    Raises UserError where the config's parts do not fit each other or the mesh.
    """
    if config.training.parallelism != "jit":
        raise UserError("a state is laid out over a mesh under jit: leave training.parallelism at 'jit'")
    mesh = abstract_mesh(config.training.mesh, num_devices)
    shards = num_batch_shards(mesh)
    check_batch_size(config.training.batch_size, config.training.num_microbatches, shards)
    parallel = build(config, mesh)
    state = parallel.abstract()
    trained = parallel.objective.trained(state.params)
    rows = batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows)
        for name, x in abstract_batch(config).items()
    }
    kinds = {
        "parameters": state.params,
        "gradients": trained,
        "optimizer": state.opt_state,
        "average": state.ema_params,
        "statistics": state.batch_stats,
        "batch": batch,
    }
    return Footprint(
        config=config.name,
        mesh=dict(mesh.shape),
        arrays=tuple(held for kind, tree in kinds.items() for held in _describe(kind, tree)),
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        num_trained=sum(leaf.size for leaf in jax.tree.leaves(trained)),
    )


def _describe(kind: str, tree: PyTree) -> Iterator[Held]:
    for path, leaf in jax.tree.leaves_with_path(tree):
        sharding: Any = leaf.sharding
        size = leaf.dtype.itemsize
        axes = [*sharding.spec, *[None] * (len(leaf.shape) - len(sharding.spec))]
        yield Held(
            kind=kind,
            path=jax.tree_util.keystr(path, simple=True, separator="/"),
            shape=tuple(leaf.shape),
            dtype=str(leaf.dtype),
            cut=tuple(_name(axis, sharding.mesh.shape) for axis in axes),
            num_bytes=math.prod(leaf.shape) * size,
            bytes_per_device=math.prod(sharding.shard_shape(tuple(leaf.shape))) * size,
        )


def _name(axis: str | tuple[str, ...] | None, sizes: Mapping[str, int]) -> str:
    """Returns, of the mesh axes of one dimension, those with more than one device."""
    names = axis if isinstance(axis, tuple) else () if axis is None else (axis,)
    return " x ".join(name for name in names if sizes[name] > 1)
