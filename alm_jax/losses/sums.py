"""Sums that losses share: of rows that count, of products, and log-sum-exps that grow block by block.

What a loss adds up over the pairs of a row or a column is a tree of accumulators with leaves of two kinds: a
``LogSumExp`` is merged as one, any other array is added.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

from alm_jax.types import PyTree

AxisName = str | tuple[str, ...]
MASKED_LOGIT = float(jnp.finfo(jnp.float32).min) / 2
"""Stands for -inf among float32 logits: half of the lowest number, so that differences of two stay finite, and a
softmax over nothing but padding has a value and a zero gradient where -inf would give NaN."""


def add_up(x: Shaped[Array, "*dims"], *, by_row: bool) -> Float[Array, "*rows"]:
    """The sum of ``x`` in float32; with ``by_row`` that of each index of its first axis."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)) if by_row else None, dtype=jnp.float32)


def multiply(x: Array, y: Array, contract: tuple[int, int]) -> Array:
    """Product of two matrices over dimension ``contract[0]`` of x and ``contract[1]`` of y, float32.

    bfloat16 factors are multiplied as such, float32 ones to float32's precision.
    """
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=jnp.float32)


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
