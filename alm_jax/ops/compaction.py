"""Entries that count moved to the front of their rows, in their order, with static shapes and on the device.

Several texts with holes, laid one after another, become a packed row so: parts of different lengths need no other care.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped


class Compaction(NamedTuple):
    """Where each entry of a shorter row comes from."""

    source: Int[Array, "R C"]
    """Its place in the row before; of no meaning where there is none."""
    mask: Bool[Array, "R C"]
    """True where there is one."""


def plan_compaction(mask: Bool[Array, "R N"], length: int) -> Compaction:
    """The first ``length`` entries of each row where ``mask`` is True; those after them are left out."""
    ends = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
    wanted = jnp.arange(1, length + 1, dtype=jnp.int32)
    # The n-th entry stands where the count first reaches n.
    source = jax.vmap(lambda row: jnp.searchsorted(row, wanted))(ends).astype(jnp.int32)
    return Compaction(source, wanted[None] <= ends[:, -1:])


def compact(x: Shaped[Array, "R N"], plan: Compaction) -> Shaped[Array, "R C"]:
    """One number an entry as ``plan`` says; 0 where there is none."""
    return jnp.where(plan.mask, jnp.take_along_axis(x, plan.source, axis=1, mode="clip"), 0)


def first_of_runs(ids: Int[Array, "B N"], mask: Bool[Array, "B N"]) -> Bool[Array, "B N"]:
    """True where an entry differs from the one before it; padding, at the end of a row, never is.

    Lakhotia et al. 2021 (https://arxiv.org/abs/2102.01192, section 3): a unit that goes on is said once.
    """
    before = jnp.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return mask & (ids != before)
