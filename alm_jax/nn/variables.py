"""The variables of a model: initialisation, shapes, and axis names, for any module."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax
from jaxtyping import Array

from alm_jax.types import PyTree

Draw: TypeAlias = Callable[[Any, Array], PyTree]
"""(config, key) -> ``{"params": ..., "batch_stats": ...}``, parameters in boxes that carry the names of their axes."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Models of one kind: initialises and describes the variables of a config."""

    draw: Draw
    """Initialises the variables of a config; it is traced, and never runs operation by operation."""

    def init(self, config: Any, key: Array) -> dict[str, Any]:
        """Initialises the variables of ``config``: float32, without boxes.

        It is compiled, so that only the random numbers are computed and no forward pass; under an outer `jax.jit`
        with ``out_shardings`` no array is ever whole on one device.
        """
        return dict(_init(self.draw, config, key))

    def abstract(self, config: Any) -> dict[str, Any]:
        """Returns shapes and dtypes of the variables without making arrays."""
        return dict(nn.unbox(self._boxed(config)))

    def axes(self, config: Any) -> PyTree:
        """Returns the tree of ``params`` with the axis names of each leaf (`alm_jax.nn.parameter`), a tuple, in its
        place.

        A parameter without names has the empty tuple. Makes no array.
        """
        return jax.tree.map(
            lambda leaf: tuple(leaf.names) if isinstance(leaf, nn.LogicallyPartitioned) else (),
            self._boxed(config)["params"],
            is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned),
        )

    def _boxed(self, config: Any) -> PyTree:
        return jax.eval_shape(functools.partial(self.draw, config), jax.random.key(0))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _init(draw: Draw, config: Any, key: Array) -> PyTree:
    return nn.unbox(draw(config, key))
