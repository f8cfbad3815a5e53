"""Blocks by rotation: the texts travel round the devices while each device keeps its audio, the form ``ring``.

Memory is that of a device's own rows and of a few travelling columns. Every transfer has a block to hide behind:

- while the first half of a device's own block is computed, its columns leave for the next device;
- while the block of the columns in hand is computed, these columns leave, and their sums *without* this block
  come in; the block's own sums are added on arrival;
- while the second half of the own block is computed, the sums come home.

The columns go round in pieces, one after the other, so that what is on the way is small beside the own rows.
"""

import jax
from jax import lax

from alm_jax.losses.contrastive.sums import AxisName, merge, vary
from alm_jax.losses.contrastive.tiles import cut_into_tiles, join_tiles
from alm_jax.losses.contrastive.visits import Empty, Visit
from alm_jax.types import PyTree


def sweep(
    visit: Visit,
    rows: PyTree,
    cols: PyTree,
    empty_rows: Empty,
    empty_cols: Empty,
    *,
    axis_name: AxisName,
    piece: int,
) -> tuple[PyTree, PyTree]:
    """The sums of this device's rows and columns over all pairs of all devices; see ``visits`` for the rest.

    At most ``piece`` columns travel at a time.
    """
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    pieces = cut_into_tiles(cols, piece)
    size = jax.tree.leaves(pieces)[0].shape[1]
    half = -(-num_rows // 2)

    def rotate(tree: PyTree) -> PyTree:
        num_devices = lax.axis_size(axis_name)
        ring = [(i, (i + 1) % num_devices) for i in range(num_devices)]
        return jax.tree.map(lambda x: lax.ppermute(x, axis_name, ring), tree)

    def visit_own(row_sums: PyTree, cols: PyTree, start: int, stop: int) -> tuple[PyTree, PyTree]:
        own, sums = (jax.tree.map(lambda x: x[start:stop], tree) for tree in (rows, row_sums))
        sums, col_sums = visit(own, cols, sums, vary(empty_cols(size), (rows, cols)))
        row_sums = jax.tree.map(
            lambda x, y: lax.dynamic_update_slice_in_dim(x, y, start, axis=0), row_sums, sums
        )
        return row_sums, col_sums

    def go_round(row_sums: PyTree, cols: PyTree) -> tuple[PyTree, PyTree]:
        in_hand = rotate(cols)
        row_sums, col_sums = visit_own(row_sums, cols, 0, half)

        def step(carry: tuple[PyTree, PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree, PyTree], None]:
            row_sums, in_hand, col_sums = carry
            following, arrived = rotate(in_hand), rotate(col_sums)
            row_sums, part = visit(rows, in_hand, row_sums, vary(empty_cols(size), (rows, cols)))
            return (row_sums, following, merge(arrived, part)), None

        carry = (row_sums, in_hand, col_sums)
        (row_sums, cols, col_sums), _ = lax.scan(step, carry, length=lax.axis_size(axis_name) - 1)
        # The columns are at home again, their sums one device away.
        col_sums = rotate(col_sums)
        if half < num_rows:
            row_sums, part = visit_own(row_sums, cols, half, num_rows)
            col_sums = merge(col_sums, part)
        return row_sums, col_sums

    row_sums, col_sums = lax.scan(go_round, vary(empty_rows(num_rows), (rows, cols)), pieces)
    return row_sums, join_tiles(col_sums, num_rows)
