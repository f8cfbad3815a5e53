"""Blocks by gathering: each device computes one block of the pair matrix, the forms ``chunked`` and ``grid``.

The n devices stand on an X x Y grid. Device (x, y) gathers the audio of the Y devices of its row and the texts
of the X devices of its column, and has one block of (B / X) x (B / Y) pairs: every pair is computed once.
Its sums of rows and columns are reduced and scattered back the same way.

X = n, Y = 1 is ``chunked``: the texts of all are gathered, 8 B E bytes and more a device. X = Y = sqrt(n) is
``grid``: forward and backward move 16 B E / sqrt(n) bytes in bfloat16, and hold as much (the scheme of SUMMA,
van de Geijn and Watts 1997).
"""

import jax
from jax import lax

from alm_jax.losses.contrastive.visits import Empty, Finish, Visit
from alm_jax.losses.sums import AxisName, reduce_scatter, vary
from alm_jax.types import PyTree


def grid_shape(num_devices: int) -> tuple[int, int]:
    """Returns (X, Y) with X Y = ``num_devices`` and X >= Y as close to each other as possible."""
    y = int(num_devices**0.5)
    while num_devices % y:
        y -= 1
    return num_devices // y, y


def sweep(
    visit: Visit,
    rows: PyTree,
    cols: PyTree,
    empty_rows: Empty,
    empty_cols: Empty,
    finish_rows: Finish,
    finish_cols: Finish,
    *,
    axis_name: AxisName,
    shape: tuple[int, int],
) -> tuple[PyTree, PyTree]:
    """Returns the finished sums of this device's rows and columns over all pairs of all devices; see ``visits``.

    ``shape`` is (X, Y); its product is the number of devices along ``axis_name``.
    """
    num_x, num_y = shape
    index = lax.axis_index(axis_name)
    along_y = [[x * num_y + y for y in range(num_y)] for x in range(num_x)]
    along_x = [[x * num_y + y for x in range(num_x)] for y in range(num_y)]

    def gather(tree: PyTree, groups: list[list[int]]) -> PyTree:
        if len(groups[0]) == 1:
            return tree
        return jax.tree.map(
            lambda x: lax.all_gather(x, axis_name, tiled=True, axis_index_groups=whole(groups)), tree
        )

    all_rows, all_cols = gather(rows, along_y), gather(cols, along_x)
    num_rows, num_cols = (jax.tree.leaves(tree)[0].shape[0] for tree in (all_rows, all_cols))
    row_sums, col_sums = visit(
        all_rows, all_cols, *vary((empty_rows(num_rows), empty_cols(num_cols)), (rows, cols))
    )
    if num_y > 1:
        row_sums = reduce_scatter(row_sums, axis_name, groups=whole(along_y), position=index % num_y)
    if num_x > 1:
        col_sums = reduce_scatter(col_sums, axis_name, groups=whole(along_x), position=index // num_y)
    return finish_rows(rows, row_sums), finish_cols(cols, col_sums)


def whole(groups: list[list[int]]) -> list[list[int]] | None:
    """Returns ``groups``, or None where there is only one: the collective over the whole axis."""
    return groups if len(groups) > 1 else None
