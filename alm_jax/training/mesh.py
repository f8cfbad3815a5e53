"""The device mesh, with the axes ``data``, ``fsdp`` and ``tensor``.

The batch is cut over ``data`` and ``fsdp``; parameters over ``fsdp`` and ``tensor`` (see sharding.py).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from alm_jax.errors import UserError
from alm_jax.ranges import Range

AXES = ("data", "fsdp", "tensor")
AnyMesh: TypeAlias = Mesh | AbstractMesh
"""A mesh of devices, or of a number of devices that need not exist."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Number of devices along each axis of the mesh. One axis may be -1: all remaining devices."""

    data: Annotated[int, Range(-1)] = -1
    """Copies of the model, each with its own rows of the batch."""
    fsdp: Annotated[int, Range(-1)] = 1
    """Number of parts into which parameters and optimizer state are cut, along with the batch."""
    tensor: Annotated[int, Range(-1)] = 1
    """Number of parts into which the width of every layer is cut."""
    num_slices: int = 1
    """Number of TPU slices joined by a data-centre network. Slices are copies along ``data``, so that only gradients
    cross the network; ``fsdp`` and ``tensor`` stay inside a slice."""


def resolve_shape(config: MeshConfig, num_devices: int) -> tuple[int, int, int]:
    """Returns the mesh's shape on ``num_devices`` devices. Raises UserError where it does not fit."""
    sizes = [config.data, config.fsdp, config.tensor]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"mesh sizes are {sizes}: each must be positive, and at most one may be -1")
    asked = " x ".join(map(str, sizes))
    fixed = math.prod(size for size in sizes if size != -1)
    if num_devices % fixed or (-1 not in sizes and fixed != num_devices):
        given = " x ".join(
            f"mesh.{name} {size}" for name, size in zip(AXES, sizes, strict=True) if size != -1
        )
        rest = (
            f"set one of mesh.data, mesh.fsdp, mesh.tensor to -1 for all that are left, or let their product be "
            f"{num_devices}"
            if -1 not in sizes
            else f"let {given} be one of {_listed(divisors(num_devices))}"
        )
        raise UserError(
            f"a mesh of data x fsdp x tensor = {asked} does not fit {num_devices} device(s): {given} = {fixed}; {rest}"
        )
    if -1 in sizes:
        sizes[sizes.index(-1)] = num_devices // fixed
    if config.num_slices < 1 or sizes[0] % config.num_slices:
        raise UserError(
            f"mesh.num_slices is {config.num_slices} and mesh.data {sizes[0]}: slices are copies along data, so it "
            f"must be one of {_listed(divisors(sizes[0]))}"
        )
    return sizes[0], sizes[1], sizes[2]


def divisors(number: int) -> list[int]:
    """Returns the divisors of a number, ascending."""
    return [size for size in range(1, number + 1) if number % size == 0]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def build_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh over ``devices`` (default: all). Raises UserError where its shape does not fit."""
    devices = jax.devices() if devices is None else devices
    shape = resolve_shape(config, len(devices))
    found = {getattr(device, "slice_index", 0) for device in devices}
    if len(found) != config.num_slices:
        raise UserError(
            f"mesh.num_slices is {config.num_slices}, and the devices are of {len(found)} slice(s): set it to "
            f"{len(found)}"
        )
    kinds = (AxisType.Auto,) * len(AXES)
    if config.num_slices == 1:
        return jax.make_mesh(shape, AXES, devices=devices, axis_types=kinds)
    inside = (shape[0] // config.num_slices, *shape[1:])
    across = (config.num_slices, 1, 1)
    grid = mesh_utils.create_hybrid_device_mesh(inside, across, devices=list(devices))
    return Mesh(grid, AXES, axis_types=kinds)


def device_kind(mesh: AnyMesh) -> str:
    """JAX's name of the devices' kind; empty where the devices need not exist."""
    return "" if isinstance(mesh, AbstractMesh) else str(mesh.devices.flat[0].device_kind)


def abstract_mesh(config: MeshConfig, num_devices: int) -> AbstractMesh:
    """Builds a mesh of devices that need not exist, for shapes and shardings. Raises UserError as `build_mesh`."""
    return AbstractMesh(resolve_shape(config, num_devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch_size(batch_size: int, num_microbatches: int, num_shards: int) -> None:
    """Raises UserError unless every micro-batch divides evenly over the batch's shards."""
    if batch_size % (num_microbatches * num_shards):
        step = num_microbatches * num_shards
        near = sorted({max(step, batch_size // step * step), (batch_size // step + 1) * step})
        raise UserError(
            f"a batch of {batch_size} does not divide into {num_microbatches} micro-batch(es) on {num_shards} "
            f"batch shard(s): it must be a multiple of {step}, for example {' or '.join(map(str, near))}"
        )
