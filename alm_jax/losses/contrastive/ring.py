"""Blocks by rotation: the texts travel round the devices while each device keeps its audio, the form ``ring``.

Memory is that of a device's own rows and of a few travelling columns. Every transfer has a block to hide behind:

- while the first half of a device's own columns is computed, they leave for the next device;
- while the block of the columns in hand is computed, these columns leave, and their sums *without* this block
  come in; the block's own sums are added on arrival;
- while the second half of the own columns is computed, the sums come home.

The columns go round in pieces, one after the other, so that what is on the way is small beside the own rows.

On TPUs whose chips lie in a plane the ring goes from neighbour to neighbour: XLA lets a transfer run beside the
computation only if it takes no detour (v5e:4x8 and larger, libtpu 0.0.52).
"""

import jax
import jax.numpy as jnp
from jax import lax

from alm_jax.losses.contrastive.gathered import grid_shape
from alm_jax.losses.contrastive.tiles import LANES, cut_into_tiles, join_tiles
from alm_jax.losses.contrastive.visits import Empty, Finish, Visit
from alm_jax.losses.sums import AxisName, merge, vary
from alm_jax.types import PyTree

MIN_PIECE = 512
"""Number of columns below which no smaller piece is made to save memory: its tiles would be slow."""


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
    tile: int,
) -> tuple[PyTree, PyTree]:
    """Returns the finished sums of this device's rows and columns over all pairs of all devices; see ``visits``.

    ``tile`` is the maximum number of columns that travel at a time; fewer travel where that would be much compared to
    the device's own rows.
    """
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    num_devices = lax.axis_size(axis_name)
    pieces = cut_into_tiles(cols, min(tile, max(MIN_PIECE, num_rows // 8)))
    size = jax.tree.leaves(pieces)[0].shape[1]
    half = -(-size // (2 * LANES)) * LANES if size > LANES else -(-size // 2)

    order = neighbours(num_devices)
    ring = list(zip(order, order[1:] + order[:1], strict=True))

    def rotate(tree: PyTree) -> PyTree:
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
        # Their sums are on the previous device; the last hop returns them.
        col_sums = rotate(col_sums)
        if half < size:
            row_sums, second_sums = visit_part(row_sums, second)
            col_sums = merge(col_sums, join(vary(empty_cols(half), (rows, cols)), second_sums))
        return row_sums, finish_cols(cols, col_sums)

    row_sums, col_sums = lax.scan(go_round, vary(empty_rows(num_rows), (rows, cols)), pieces)
    return finish_rows(rows, row_sums), join_tiles(col_sums, num_rows)


def join(a: PyTree, b: PyTree) -> PyTree:
    """Returns the accumulators of ``a`` followed by those of ``b``."""
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), a, b)


PLANAR = ("TPU v2", "TPU v3", "TPU v5 lite", "TPU v6 lite")
"""Kinds of TPU whose slices are planes of x times y chips, x being y or half of it, numbered row by row."""


def neighbours(num_devices: int) -> list[int]:
    """Returns an order in which consecutive devices, and the last and first, are neighbours where the topology is
    known."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None or device.device_kind not in PLANAR:
        return list(range(num_devices))
    num_y, num_x = grid_shape(num_devices)
    return closed_path(num_x, num_y)


def closed_path(num_x: int, num_y: int) -> list[int]:
    """Places x * num_y + y of a grid, in an order of neighbours that ends beside its start.

    Along y = 0 to the far side, and back in turns through the rest. There is such an order where ``num_x`` is
    even and ``num_y`` at least 2; elsewhere the places come in turns, and the last is not beside the first.
    """
    if num_x % 2 or num_y == 1:
        return [x * num_y + (y if x % 2 == 0 else num_y - 1 - y) for x in range(num_x) for y in range(num_y)]
    path = [x * num_y for x in range(num_x)]
    for turn, x in enumerate(reversed(range(num_x))):
        ys = range(1, num_y) if turn % 2 == 0 else reversed(range(1, num_y))
        path += [x * num_y + y for y in ys]
    return path
