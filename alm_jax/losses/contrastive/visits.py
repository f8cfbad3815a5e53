"""How a loss and a form meet: a form brings together rows and columns, a loss visits a block of their pairs.

A *visit* ``(rows, cols, row_sums, col_sums) -> (row_sums, col_sums)`` takes one block: trees of arrays [r ...] and
[c ...] with what is known of its rows and columns, and accumulators (``sums``) of the same lengths to be
updated. ``empty(size)`` gives accumulators that have seen nothing; ``finish(rows, row_sums)`` makes the result of
accumulators that have seen all. A form's *sweep* visits every pair of the global batch once, and returns the
finished sums of a device's own rows and columns.
"""

from collections.abc import Callable

from alm_jax.types import PyTree

Visit = Callable[[PyTree, PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]
Empty = Callable[[int], PyTree]
Finish = Callable[[PyTree, PyTree], PyTree]
