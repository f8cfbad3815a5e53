"""Packs clips of different lengths one after another into rows of equal length, and unpacks them: static shapes, on
the device.

A row holds K clips and has a budget of C steps. K lengths add up to much the same from row to row, so that C may be
near K times the mean length where padding would need K times the longest. (NaViT's Patch n' Pack, Dehghani et al.
2023, https://arxiv.org/abs/2307.06304; there the host chooses which examples share a row.)
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Packing(NamedTuple):
    """Where each step of a row comes from."""

    segment: Int[Array, "R C"]
    """The clip of the row that a step belongs to, 0..K-1; K where the step is empty."""
    step: Int[Array, "R C"]
    """Place of the step in that clip; 0 where it is empty."""


def cut_to_budget(lengths: Int[Array, "R K"], budget: int) -> Int[Array, "R K"]:
    """Shortens the longest lengths of a row to one common length where together they exceed ``budget``.

    That length is the largest that fits, so at most K - 1 steps of such a row stay empty. Needs budget >= K.
    """
    candidates = jnp.arange(1, budget + 1)
    total = jnp.sum(jnp.minimum(lengths[:, None, :], candidates[None, :, None]), axis=2)
    cap = jnp.max(jnp.where(total <= budget, candidates[None, :], 1), axis=1)
    return jnp.minimum(lengths, cap[:, None])


def plan_packing(lengths: Int[Array, "R K"], budget: int) -> Packing:
    """Lays the clips of each row out from its start; their lengths must not exceed ``budget`` together."""
    ends = jnp.cumsum(lengths, axis=1)
    position = jnp.arange(budget)[None, :]
    segment = jnp.sum(position[:, :, None] >= ends[:, None, :], axis=2)
    starts = jnp.concatenate([ends - lengths, jnp.zeros_like(ends[:, :1])], axis=1)
    step = position - jnp.take_along_axis(starts, segment, axis=1)
    return Packing(segment, jnp.where(segment < lengths.shape[1], step, 0))


def pack(x: Float[Array, "R K S *rest"], packing: Packing) -> Float[Array, "R C *rest"]:
    """Packs the steps of K clips a row as ``packing`` says; empty steps are zeros."""
    rows, num_clips, num_steps, *rest = x.shape
    flat = x.reshape(rows, num_clips * num_steps, *rest)
    source = jnp.minimum(packing.segment, num_clips - 1) * num_steps + packing.step
    ones = (1,) * len(rest)
    taken = jnp.take_along_axis(flat, source.reshape(*source.shape, *ones), axis=1, mode="clip")
    return jnp.where((packing.segment < num_clips).reshape(*source.shape, *ones), taken, 0)


def unpack(
    x: Float[Array, "R C *rest"], packing: Packing, num_clips: int, num_steps: int
) -> Float[Array, "R K S *rest"]:
    """Inverse of `pack`: K clips a row, each of S steps; steps that are not in the row are zeros."""
    rows, _, *rest = x.shape
    steps = jnp.arange(num_steps)[None, None, :, None]
    clips = jnp.arange(num_clips)[None, :, None, None]
    found = (clips == packing.segment[:, None, None, :]) & (steps == packing.step[:, None, None, :])
    ones = (1,) * len(rest)
    source = jnp.argmax(found, axis=-1).reshape(rows, num_clips * num_steps, *ones)
    taken = jnp.take_along_axis(x, source, axis=1, mode="clip").reshape(rows, num_clips, num_steps, *rest)
    return jnp.where(jnp.any(found, axis=-1).reshape(rows, num_clips, num_steps, *ones), taken, 0)


def same_segment(segment: Int[Array, "R N"]) -> Bool[Array, "R N N"]:
    """True where two tokens of a row are of one clip: the block-diagonal mask of attention."""
    return segment[:, :, None] == segment[:, None, :]


def segment_mean(
    x: Float[Array, "R N D"], segment: Int[Array, "R N"], num_segments: int
) -> Float[Array, "R K D"]:
    """Mean over the tokens of each clip, in float32 or wider; zero for a clip without any."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    member = (segment[:, :, None] == jnp.arange(num_segments)[None, None, :]).astype(x.dtype)
    total = jnp.einsum("rnk,rnd->rkd", member, x, precision="highest")
    return total / jnp.maximum(jnp.sum(member, axis=1), 1)[:, :, None]
