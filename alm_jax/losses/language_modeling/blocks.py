"""Blocks of equal size of the tokens that count, and of the words: visited in turn, updated in place.

Without a mask a block is a slice. With one the tokens that count are gathered, so that the work is in proportion to
their number: prompts, audio positions and padding cost nothing, and the number of blocks is known only at run time.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, Int

from alm_jax.losses.contrastive.tiles import LANES


class Rows(NamedTuple):
    """The counted tokens, of n, in ``capacity`` blocks of ``size`` of which the first ``num_blocks`` are in use."""

    num_rows: int
    """n, the number of tokens."""
    size: int
    """Tokens of a block."""
    capacity: int
    """Maximum number of blocks."""
    num_blocks: int | Array
    """Number of blocks in use; a Python integer where no mask was given."""
    order: Int[Array, " slots"] | None
    """Indices of the counted tokens, ascending, then numbers from n on; None: all count."""
    platform: str
    """Platform to compile for."""

    @classmethod
    def of(cls, num_rows: int, mask: Bool[Array, " n"] | None, most: int, platform: str) -> "Rows":
        """Makes blocks of at most ``most`` tokens."""
        capacity = -(-num_rows // most)
        size = even_size(num_rows, most)
        if mask is None:
            return cls(num_rows, size, capacity, capacity, None, platform)
        slots = capacity * size
        order = jnp.nonzero(mask, size=slots, fill_value=num_rows)[0].astype(jnp.int32)
        # Slots that are not in use differ from each other: scatters may rely on indices that never repeat.
        order = jnp.where(order == num_rows, num_rows + jnp.arange(slots, dtype=jnp.int32), order)
        count = (jnp.sum(mask, dtype=jnp.int32) + size - 1) // size
        return cls(num_rows, size, capacity, count, order, platform)

    def take(self, x: Array, index: Array) -> Array:
        """Returns block ``index`` of x [n ...]; zeros in slots that are not in use."""
        if self.order is None:
            bits, start = movable(x, self._start(index), self.platform)
            return numbers(lax.dynamic_slice_in_dim(bits, start, self.size), x)
        bits, slots = movable(x, self._slots(index), self.platform)
        block = bits.at[slots].get(mode="fill", fill_value=0, indices_are_sorted=True, unique_indices=True)
        return numbers(block, x)

    def put(self, x: Array, index: Array, block: Array) -> Array:
        """Returns x [n ...] with block ``index`` replaced."""
        block = block.astype(x.dtype)
        if self.order is not None:
            return x.at[self._slots(index)].set(
                block, mode="drop", indices_are_sorted=True, unique_indices=True
            )
        if self.num_rows % self.size:
            used = self.in_use(index).reshape(-1, *(1,) * (x.ndim - 1))
            block = jnp.where(used, block, self.take(x, index))
        return lax.dynamic_update_slice_in_dim(x, block, self._start(index), axis=0)

    def in_use(self, index: Array) -> Bool[Array, " size"]:
        """Mask of the slots of a block whose token counts and was in no earlier block."""
        if self.order is not None:
            return self._slots(index) < self.num_rows
        return self._start(index) + jnp.arange(self.size) >= index * self.size

    def _slots(self, index: Array) -> Array:
        assert self.order is not None
        return lax.dynamic_slice_in_dim(self.order, index * self.size, self.size)

    def _start(self, index: Array) -> Array:
        # An uneven last block begins early, and repeats tokens of the one before.
        return jnp.minimum(index * self.size, self.num_rows - self.size)


class Words(NamedTuple):
    """All words of a device, in ``num_blocks`` blocks of ``size``, along dimension ``axis`` of the kernel."""

    num_words: int
    """V, the number of words."""
    size: int
    """Words of a block."""
    num_blocks: int
    """Number of blocks."""
    axis: int
    """Axis of the words: 0 of a kernel [V D], 1 of a kernel [D V]."""
    platform: str
    """Platform to compile for."""

    @classmethod
    def of(cls, num_words: int, most: int, axis: int, platform: str) -> "Words":
        """Makes blocks of at most ``most`` words."""
        count = -(-num_words // most)
        return cls(num_words, even_size(num_words, most), count, axis, platform)

    def start(self, index: Array) -> Array:
        """The first word of a block. An uneven last block begins early, and repeats words of the one before."""
        return jnp.minimum(index * self.size, self.num_words - self.size)

    def is_new(self, index: Array) -> Bool[Array, "1 size"] | None:
        """Mask of the words of a block that were in no earlier block; None where blocks never overlap."""
        if self.num_words % self.size == 0:
            return None
        return (self.start(index) + jnp.arange(self.size) >= index * self.size)[None, :]

    def take(self, kernel: Array, index: Array) -> Array:
        """Returns a block of a kernel, or of a bias [V]."""
        bits, start = movable(kernel, self.start(index), self.platform)
        axis = min(self.axis, kernel.ndim - 1)
        return numbers(lax.dynamic_slice_in_dim(bits, start, self.size, axis=axis), kernel)

    def add(self, total: Array, index: Array, block: Array) -> Array:
        """``total`` with ``block``, float32, added to a block, and rounded to the dtype of ``total``."""
        block = (self.take(total, index).astype(jnp.float32) + block).astype(total.dtype)
        if total.ndim == 2:
            # XLA:TPU may prefer another layout in the loop, and then copies the whole gradient after it.
            block = with_layout_constraint(block, Layout(major_to_minor=(0, 1)))
        axis = min(self.axis, total.ndim - 1)
        return lax.dynamic_update_slice_in_dim(total, block, self.start(index), axis=axis)


def even_size(total: int, most: int) -> int:
    """The size of blocks of at most ``most`` that cover ``total``: as even as can be, and aligned where large."""
    size = -(-total // -(-total // most))
    return size if size <= LANES else min(most, total, -(-size // LANES) * LANES)


def movable(x: Array, place: Array, platform: str) -> tuple[Array, Array]:
    """``x`` and the place of a block in it, as ``x`` is best read: on the CPU, bfloat16 as integers.

    XLA:CPU slices bfloat16 by way of float32, and would make a float32 copy of the whole of ``x`` before the loop.
    The barrier keeps the integers from being copied out of the loop in turn. On the TPU, where slices of bfloat16 are
    slices, the integers would cost copies.
    """
    if platform != "cpu" or x.dtype != jnp.bfloat16:
        return x, place
    x, place = lax.optimization_barrier((x, place))
    return lax.bitcast_convert_type(x, jnp.uint16), place


def numbers(block: Array, like: Array) -> Array:
    """A block of what ``movable`` made of ``like``, as numbers again."""
    return block if block.dtype == like.dtype else lax.bitcast_convert_type(block, like.dtype)
