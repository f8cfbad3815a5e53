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


def _lay_out(x: Array, rule: Rule, axes: Axes) -> Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or AxisType.Manual in mesh.axis_types:
        return x
    return lax.with_sharding_constraint(x, rule(axes, x.shape))
