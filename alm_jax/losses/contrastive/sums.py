"""Accumulators over the pairs of a row or a column, and how those of several blocks are merged.

A tree of accumulators has two kinds of leaves: a ``LogSumExp`` is merged as one, any other array is added.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from alm_jax.losses.contrastive.reference import MASKED_LOGIT
from alm_jax.types import PyTree

AxisName = str | tuple[str, ...]


class LogSumExp(NamedTuple):
    """Running log-sum-exps of n rows or columns, ``peak + log(total)``, float32."""

    peak: Float[Array, " n"]
    """The largest logit so far; ``MASKED_LOGIT`` where there was none."""
    total: Float[Array, " n"]
    """Sum of exp(logit - peak)."""

    @classmethod
    def empty(cls, size: int) -> "LogSumExp":
        """Makes accumulators of ``size`` rows that have seen no logit."""
        return cls(jnp.full((size,), MASKED_LOGIT, jnp.float32), jnp.zeros((size,), jnp.float32))

    def value(self) -> Float[Array, " n"]:
        """Returns the log-sum-exps; a row that has seen nothing has one lower than any logit."""
        return self.peak + jnp.log(jnp.maximum(self.total, jnp.finfo(jnp.float32).tiny))


def is_log_sum_exp(x: Any) -> bool:
    """Whether ``x`` is a leaf that is merged as a log-sum-exp."""
    return isinstance(x, LogSumExp)


def merge(a: PyTree, b: PyTree) -> PyTree:
    """Merges two accumulators into those over everything that either has seen."""

    def merge_leaf(x: Any, y: Any) -> Any:
        if not is_log_sum_exp(x):
            return x + y
        peak = jnp.maximum(x.peak, y.peak)
        return LogSumExp(peak, x.total * jnp.exp(x.peak - peak) + y.total * jnp.exp(y.peak - peak))

    return jax.tree.map(merge_leaf, a, b, is_leaf=is_log_sum_exp)


def reduce_scatter(
    tree: PyTree, axis_name: AxisName, *, groups: list[list[int]] | None, position: Array
) -> PyTree:
    """Merges accumulators [k b ...] over the k devices of a group; each keeps its own b.

    ``position`` is this device's place in its group; ``groups`` are as in ``lax.psum_scatter``.
    """

    def scatter(x: Array) -> Array:
        return lax.psum_scatter(x, axis_name, tiled=True, axis_index_groups=groups)

    def reduce_leaf(x: Any) -> Any:
        if not is_log_sum_exp(x):
            return scatter(x)
        peak = lax.pmax(x.peak, axis_name, axis_index_groups=groups)
        total = scatter(x.total * jnp.exp(x.peak - peak))
        return LogSumExp(lax.dynamic_slice_in_dim(peak, position * total.shape[0], total.shape[0]), total)

    return jax.tree.map(reduce_leaf, tree, is_leaf=is_log_sum_exp)


def vary(tree: PyTree, like: PyTree) -> PyTree:
    """Marks ``tree`` as varying over the mesh axes that ``like`` varies over, for ``shard_map``'s types.

    The transpose of the mark adds up cotangents over these axes. Changes nothing outside ``shard_map``.
    """
    names = frozenset[str]().union(
        *(jax.typeof(leaf).manual_axis_type.varying for leaf in jax.tree.leaves(like))
    )

    def mark(x: Array) -> Array:
        missing = tuple(sorted(names - jax.typeof(x).manual_axis_type.varying))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(mark, tree)
