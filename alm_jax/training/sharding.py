"""Sharding of arrays: the tables from logical axis names to mesh axes.

Modules name the axes of their parameters and of their activations; only this file builds a NamedSharding.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alm_jax.batch import BATCH_AXES
from alm_jax.errors import UserError
from alm_jax.nn.layout import Layout, use_layout
from alm_jax.training.mesh import AnyMesh, divisors
from alm_jax.types import PyTree

PARAMETER_RULES: dict[str, str | None] = {
    # The width of the residual stream is what every large array has: cutting it is FSDP.
    "embed": "fsdp",
    # Channels of convolutions: the counterpart of a transformer's width.
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
"""Mesh axis of each logical axis of a parameter. An axis that is absent is not cut."""

ACTIVATION_RULES: dict[str, tuple[str, ...]] = {
    # Rows stay where they are: what ``fsdp`` cuts is gathered for the layer that reads it, and given back.
    "batch": BATCH_AXES,
    # What the inner dimensions of parameters are cut over, their products are too.
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "vocab": ("tensor",),
    "state": ("tensor",),
}
"""Mesh axes of each logical axis of an activation. An axis that is absent is not cut."""


def parameter_spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
    """Returns the PartitionSpec of one parameter.

    A dimension that its mesh axis does not divide is not cut (for example a vocabulary of 50,265), and a mesh axis is
    used once, by the first dimension that claims it.
    """
    spec: list[str | None] = []
    for name, size in zip(axes, shape, strict=True):
        mesh_axis = PARAMETER_RULES.get(name) if name is not None else None
        if mesh_axis in spec or mesh_axis is None or size % mesh.shape[mesh_axis]:
            mesh_axis = None
        spec.append(mesh_axis)
    return PartitionSpec(*spec)


def activation_spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
    """Returns the PartitionSpec of one activation; a dimension that its mesh axes do not divide is not cut."""
    spec: list[tuple[str, ...] | None] = []
    for name, size in zip(axes, shape, strict=True):
        cut = ACTIVATION_RULES.get(name, ()) if name is not None else ()
        is_cut = cut and size % math.prod(mesh.shape[axis] for axis in cut) == 0
        spec.append(cut if is_cut else None)
    return PartitionSpec(*spec)


def layout(mesh: AnyMesh) -> contextlib.AbstractContextManager[None]:
    """Context with the rules of ``mesh`` for the modules traced inside (`alm_jax.nn.layout`)."""
    return use_layout(
        Layout(
            activations=lambda axes, shape: activation_spec(axes, shape, mesh),
            parameters=lambda axes, shape: parameter_spec(axes, shape, mesh),
        )
    )


def is_axes(leaf: Any) -> bool:
    """Whether ``leaf`` is a parameter's tuple of axis names, a leaf of the tree of axes."""
    return isinstance(leaf, tuple)


def parameter_shardings(axes: PyTree, abstract: PyTree, mesh: AnyMesh) -> PyTree:
    """Returns the NamedSharding of every parameter: ``axes`` as an objective names them, ``abstract`` with shapes."""
    return jax.tree.map(
        lambda names, leaf: NamedSharding(mesh, parameter_spec(names, leaf.shape, mesh)),
        axes,
        abstract,
        is_leaf=is_axes,
    )


def spread_spec(spec: PartitionSpec, shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
    """Returns ``spec`` of a parameter with the largest possible dimension also cut over ``data``.

    ZeRO's first stage: Rajbhandari et al. 2019, https://arxiv.org/abs/1910.02054. Small arrays are unchanged: cutting
    one costs more than its update.
    """
    ways = mesh.shape["data"]
    if ways == 1 or math.prod(shape) < MIN_SPREAD_SIZE:
        return spec
    cuts = [() if cut is None else cut if isinstance(cut, tuple) else (cut,) for cut in spec]
    for axis in sorted(range(len(shape)), key=lambda axis: -shape[axis]):
        if shape[axis] % (ways * math.prod(mesh.shape[name] for name in cuts[axis])) == 0:
            cuts[axis] = (*cuts[axis], "data")
            break
    return PartitionSpec(*(cut or None for cut in cuts))


MIN_SPREAD_SIZE = 2**14
"""Elements of the smallest array whose moments are cut over ``data``."""


def spread_shardings(shardings: PyTree, abstract: PyTree, mesh: AnyMesh) -> PyTree:
    """Returns the NamedSharding of the optimizer's moments of every trained parameter, from those of the
    parameters."""
    return jax.tree.map(
        lambda placed, leaf: NamedSharding(mesh, spread_spec(placed.spec, leaf.shape, mesh)),
        shardings,
        abstract,
    )


class UpdateLayout(NamedTuple):
    """Layouts of trained parameters, or of anything shaped like them, around the optimizer's update."""

    cut: Callable[[PyTree], PyTree]
    """Layout of the optimizer's state: every device updates its own part."""
    whole: Callable[[PyTree], PyTree]
    """Layout of the parameters."""


UNCUT = UpdateLayout(cut=lambda tree: tree, whole=lambda tree: tree)
"""Layouts on one device, and under ``pmap``: nothing is moved."""


def update_layout(shardings: PyTree, abstract: PyTree, mesh: AnyMesh) -> UpdateLayout:
    """Makes the layouts on ``mesh``, from shardings and shapes of the trained parameters."""
    if mesh.size == 1:
        return UNCUT
    cut = spread_shardings(shardings, abstract, mesh)
    return UpdateLayout(
        cut=lambda tree: jax.lax.with_sharding_constraint(tree, cut),
        whole=lambda tree: jax.lax.with_sharding_constraint(tree, shardings),
    )


def replicated(mesh: AnyMesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """Returns the sharding of a batch: rows cut over ``data`` and ``fsdp``."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def num_batch_shards(mesh: AnyMesh) -> int:
    """Returns the number of pieces into which the rows of a batch are cut."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Assembles this process's rows of the global batch into global arrays, by key."""
    sharding = batch_sharding(mesh)
    return {key: jax.make_array_from_process_local_data(sharding, rows) for key, rows in batch.items()}


def replicated_fraction(abstract: PyTree, shardings: PyTree) -> float:
    """Returns the fraction of the bytes that every device of the mesh holds in full, in 0..1."""
    whole = total = 0
    for leaf, sharding in zip(jax.tree.leaves(abstract), jax.tree.leaves(shardings), strict=True):
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        total += size
        whole += size if sharding.is_fully_replicated else 0
    return whole / max(total, 1)


MAX_REPLICATED_FRACTION = 0.1


def check_sharded(axes: PyTree, abstract: PyTree, shardings: PyTree, mesh: AnyMesh) -> None:
    """Rejects a mesh that requires cut parameters and cannot cut them, and lists the sizes that could.

    Raises UserError where a mesh axis does not divide an axis that its rule names (heads, widths; a vocabulary is
    kept whole instead), in a parameter of ``MIN_REFUSED_FRACTION`` of all bytes or more, or where more than
    ``MAX_REPLICATED_FRACTION`` of the bytes would be whole on every device.
    """
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return
    for path, name, size, shape in _large_cuts(axes, abstract):
        axis = PARAMETER_RULES[name]
        assert axis is not None
        if size % mesh.shape[axis]:
            raise UserError(
                f"mesh.{axis} is {mesh.shape[axis]}, which does not divide {size}, the {name} axis of {path} "
                f"{list(shape)}: choose one of {_choices(axes, abstract, axis, mesh.size)}"
            )
    fraction = replicated_fraction(abstract, shardings)
    if fraction > MAX_REPLICATED_FRACTION:
        raise UserError(
            f"mesh {dict(mesh.shape)} asks for cut parameters, but {fraction:.0%} of their bytes would stay whole on "
            f"every device (at most {MAX_REPLICATED_FRACTION:.0%} may): choose fsdp and tensor that divide the model's "
            f"widths, such as fsdp {_choices(axes, abstract, 'fsdp', mesh.size)}"
        )


MIN_REFUSED_FRACTION = 0.01
"""Fraction of all bytes from which on a parameter that cannot be cut as its rule says is an error of the mesh."""
KEPT_WHOLE = {"vocab", "joint"}
"""Axes whose size is given by data (50,265 tokens): where the mesh does not divide them they are not cut."""


def _large_cuts(axes: PyTree, abstract: PyTree) -> Iterator[tuple[str, str, int, tuple[int, ...]]]:
    """Yields every axis that a mesh must divide: path of its parameter, its name and size, and the parameter's
    shape."""
    total = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
    named = jax.tree.leaves_with_path(axes, is_leaf=is_axes)
    for (path, names), leaf in zip(named, jax.tree.leaves(abstract), strict=True):
        if math.prod(leaf.shape) * leaf.dtype.itemsize < MIN_REFUSED_FRACTION * total:
            continue
        for name, size in zip(names, leaf.shape, strict=True):
            if PARAMETER_RULES.get(name) is not None and name not in KEPT_WHOLE:
                yield jax.tree_util.keystr(path, simple=True, separator="/"), name, size, leaf.shape


def _choices(axes: PyTree, abstract: PyTree, mesh_axis: str, num_devices: int) -> str:
    """Returns the sizes of a mesh axis that divide all that its rules cut and the number of devices."""
    cuts = _large_cuts(axes, abstract)
    sizes = [size for _, name, size, _ in cuts if PARAMETER_RULES[name] == mesh_axis]
    return ", ".join(map(str, divisors(math.gcd(num_devices, *sizes))))


def fetch(x: jax.Array) -> np.ndarray:
    """Returns a global array as a whole NumPy array, on every process."""
    if x.is_fully_addressable:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
