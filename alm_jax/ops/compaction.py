"""Moves the selected entries of each row to its front, in their order, with static shapes and on the device.

Texts with gaps, concatenated, become a packed row in this way, whatever the lengths of their parts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped


class Compaction(NamedTuple):
    """Where each entry of a shorter row comes from."""

    source: Int[Array, "R C"]
    """Place of the entry in the original row; undefined where there is no entry."""
    mask: Bool[Array, "R C"]
    """True where there is an entry."""


def plan_compaction(mask: Bool[Array, "R N"], length: int) -> Compaction:
    """Selects the first ``length`` entries of each row where ``mask`` is True; later ones are left out."""
    ends = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
    wanted = jnp.arange(1, length + 1, dtype=jnp.int32)
    # The n-th entry stands where the count first reaches n.
    source = jax.vmap(lambda row: jnp.searchsorted(row, wanted))(ends).astype(jnp.int32)
    return Compaction(source, wanted[None] <= ends[:, -1:])


def compact(x: Shaped[Array, "R N"], plan: Compaction) -> Shaped[Array, "R C"]:
    """Moves one number an entry as ``plan`` says; 0 where there is no entry."""
    return jnp.where(plan.mask, jnp.take_along_axis(x, plan.source, axis=1, mode="clip"), 0)


def first_of_runs(ids: Int[Array, "B N"], mask: Bool[Array, "B N"]) -> Bool[Array, "B N"]:
    """True where an entry differs from the one before it; padding, at the end of a row, never is.

    Lakhotia et al. 2021 (https://arxiv.org/abs/2102.01192, section 3): a repeated unit is kept once.
    """
    before = jnp.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return mask & (ids != before)
