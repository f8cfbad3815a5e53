"""How a loss and a form meet: a form brings together rows and columns, a loss visits a block of their pairs.

A *visit* ``(rows, cols, row_sums, col_sums) -> (row_sums, col_sums)`` takes one block: trees of arrays [r ...] and
[c ...] with what is known of its rows and columns, and accumulators (``sums``) of the same lengths to be
updated. ``empty(size)`` gives accumulators that have seen nothing. A form's *sweep* visits all pairs of the
global batch, each once, and returns the finished accumulators of a device's own rows and columns.
"""

from collections.abc import Callable

from alm_jax.types import PyTree

Visit = Callable[[PyTree, PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]
Empty = Callable[[int], PyTree]
