"""Blocks by rotation: the texts travel round the devices while each device keeps its audio, the form ``ring``.

Memory is that of a device's own rows and of a few travelling columns. Every transfer has a block to hide behind:

- while the first half of a device's own columns is computed, they leave for the next device;
- while the block of the columns in hand is computed, these columns leave, and their sums *without* this block
  come in; the block's own sums are added on arrival;
- while the second half of the own columns is computed, the sums come home.

The columns go round in pieces, one after the other, so that what is on the way is small beside the own rows.
"""

import jax
import jax.numpy as jnp
from jax import lax

from alm_jax.losses.contrastive.sums import AxisName, merge, vary
from alm_jax.losses.contrastive.tiles import LANES, cut_into_tiles, join_tiles
from alm_jax.losses.contrastive.visits import Empty, Finish, Visit
from alm_jax.types import PyTree


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
    piece: int,
) -> tuple[PyTree, PyTree]:
    """The finished sums of this device's rows and columns over all pairs of all devices; see ``visits``.

    At most ``piece`` columns travel at a time.
    """
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    num_devices = lax.axis_size(axis_name)
    pieces = cut_into_tiles(cols, piece)
    size = jax.tree.leaves(pieces)[0].shape[1]
    half = -(-size // (2 * LANES)) * LANES if size > LANES else -(-size // 2)

    def rotate(tree: PyTree) -> PyTree:
        ring = [(i, (i + 1) % num_devices) for i in range(num_devices)]
        return jax.tree.map(lambda x: lax.ppermute(x, axis_name, ring), tree)

    def visit_part(row_sums: PyTree, cols: PyTree) -> tuple[PyTree, PyTree]:
        num_cols = jax.tree.leaves(cols)[0].shape[0]
        return visit(rows, cols, row_sums, vary(empty_cols(num_cols), (rows, cols)))

    def go_round(row_sums: PyTree, cols: PyTree) -> tuple[PyTree, PyTree]:
        first, second = (
            jax.tree.map(lambda x, cut=cut: x[cut], cols) for cut in (slice(half), slice(half, None))
        )
        in_hand = rotate(cols)
        row_sums, first_sums = visit_part(row_sums, first)
        col_sums = join(first_sums, vary(empty_cols(size - half), (rows, cols)))

        def step(carry: tuple[PyTree, PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree, PyTree], None]:
            row_sums, in_hand, col_sums = carry
            following, arrived = rotate(in_hand), rotate(col_sums)
            row_sums, part = visit_part(row_sums, in_hand)
            return (row_sums, following, merge(arrived, part)), None

        carry = (row_sums, in_hand, col_sums)
        (row_sums, _, col_sums), _ = lax.scan(step, carry, length=num_devices - 1)
        # Their sums have got as far as the device before; the last hop brings them home.
        col_sums = rotate(col_sums)
        if half < size:
            row_sums, second_sums = visit_part(row_sums, second)
            col_sums = merge(col_sums, join(vary(empty_cols(half), (rows, cols)), second_sums))
        return row_sums, finish_cols(cols, col_sums)

    row_sums, col_sums = lax.scan(go_round, vary(empty_rows(num_rows), (rows, cols)), pieces)
    return finish_rows(rows, row_sums), join_tiles(col_sums, num_rows)


def join(a: PyTree, b: PyTree) -> PyTree:
    """The accumulators of ``a`` followed by those of ``b``."""
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), a, b)
