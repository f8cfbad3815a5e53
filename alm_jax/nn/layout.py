"""Where arrays lie on a mesh: modules name axes, and the rules for the names come from above.

The rules are in `alm_jax.training.sharding`, whose `layout` puts them in scope while a step is traced. Out of that
scope, as under ``pmap`` and inside of ``shard_map``, nothing is constrained.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NamedTuple, TypeAlias

import jax
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array

Axes: TypeAlias = tuple[str | None, ...]
"""A name for each axis; None for one that is never cut."""
Rule: TypeAlias = Callable[[Axes, tuple[int, ...]], PartitionSpec]
"""Names and sizes of an array's axes -> the mesh axes that each is cut over."""


class Layout(NamedTuple):
    """The rules in scope."""

    activations: Rule
    parameters: Rule


_LAYOUT: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextlib.contextmanager
def use_layout(layout: Layout) -> Iterator[None]:
    """Rules for what is traced inside."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


def constrain(x: Array, *axes: str | None) -> Array:
    """The activation ``x``, and its gradient, laid out as its axes are named: ``constrain(x, "batch", None, "embed")``.

    Names are those of parameters' axes (`alm_jax.nn.parameter`) and "batch", for the rows of a batch.
    """
    layout = _LAYOUT.get()
    return x if layout is None else _lay_out(x, layout.activations, axes)


def constrain_parameter(x: Array, axes: Axes) -> Array:
    """A parameter inside of its module, and above all its gradient, laid out as the state holds it.

    In a stack of layers this is one layer's part: so gradients are cut as soon as they are there, and not added up
    whole on every device.
    """
    layout = _LAYOUT.get()
    return x if layout is None else _lay_out(x, layout.parameters, axes)


def apply_by_rows(function: Callable[..., Array], x: Array, *whole: Array) -> Array:
    """``function(x, *whole)``, whose result has the rank and the rows of ``x``, on each device for its own rows.

    For what the partitioner cannot cut by rows alone. ``whole`` are arrays that every row needs, a kernel say.
    """
    layout = _LAYOUT.get()
    if layout is None or not _is_cut():
        return function(x, *whole)
    rows = layout.activations(("batch", *[None] * (x.ndim - 1)), x.shape)
    made: Array = jax.shard_map(function, in_specs=(rows, *[PartitionSpec()] * len(whole)), out_specs=rows)(
        x, *whole
    )
    return made


def _lay_out(x: Array, rule: Rule, axes: Axes) -> Array:
    return lax.with_sharding_constraint(x, rule(axes, x.shape)) if _is_cut() else x


def _is_cut() -> bool:
    """Whether there is a mesh of several devices, none of whose axes is mapped already."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1 and AxisType.Manual not in mesh.axis_types
