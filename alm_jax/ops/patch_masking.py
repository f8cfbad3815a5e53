"""Which patches of a spectrogram an encoder sees: unstructured and structured random masks, pure functions of a key."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class PatchMask(NamedTuple):
    """A choice of n visible patches out of N, for each clip."""

    visible_ids: Int[Array, "B n"]
    """Indices of the visible patches, in the order in which the encoder takes them."""
    restore_ids: Int[Array, "B N"]
    """Place of each patch in the sequence of visible patches followed by hidden ones; restores the grid order for a
    decoder."""
    hidden: Bool[Array, "B N"]
    """True where a patch is hidden and reconstruction is measured."""


def num_kept(size: int, ratio: float) -> int:
    """Number of ``size`` patches, rows or columns that stay visible at a masking ``ratio``: int(size (1 - ratio)).

    Raises:
      ValueError: unless 0 <= ratio < 1 leaves at least one.
    """
    kept = int(size * (1 - ratio))
    if not 0 <= ratio < 1 or kept < 1:
        raise ValueError(
            f"masking {ratio} of {size} leaves {kept}; expected a ratio in [0, 1) that leaves some"
        )
    return kept


def keep_lowest(noise: Float[Array, "B N"], num_visible: int) -> PatchMask:
    """The ``num_visible`` patches with the lowest noise are visible, in the order of their noise.

    MAE's masking (He et al. 2022, arXiv 2111.06377) with its noise given. Equal noise keeps its order.
    """
    order = jnp.argsort(noise, axis=1).astype(jnp.int32)
    restore_ids = jnp.argsort(order, axis=1).astype(jnp.int32)
    return PatchMask(order[:, :num_visible], restore_ids, restore_ids >= num_visible)


def mask_unstructured(key: Array, batch_size: int, num_patches: int, ratio: float) -> PatchMask:
    """Hides a fraction ``ratio`` of the patches, chosen uniformly and separately for every clip.

    AudioMAE pre-trains with 0.8 of 512 (Huang et al. 2022, arXiv 2207.06405): 102 stay visible.
    """
    noise = jax.random.uniform(key, (batch_size, num_patches))
    return keep_lowest(noise, num_kept(num_patches, ratio))


def mask_structured(
    key: Array, batch_size: int, grid: tuple[int, int], *, time_ratio: float, freq_ratio: float
) -> PatchMask:
    """Hides whole steps of time and whole bands of frequency of a (time, frequency) ``grid`` of patches.

    A patch is visible where neither its step nor its band is hidden. AudioMAE fine-tunes with 0.2 and 0.2 of (64,
    8): 51 steps by 6 bands, 306 patches. A ratio of 0 leaves that axis whole. Visible patches come in the order
    of the grid.
    """
    keys = jax.random.split(key)
    kept = [num_kept(grid[0], time_ratio), num_kept(grid[1], freq_ratio)]
    hidden_time, hidden_freq = (
        keep_lowest(jax.random.uniform(keys[axis], (batch_size, grid[axis])), kept[axis]).hidden
        for axis in (0, 1)
    )
    hidden = (hidden_time[:, :, None] | hidden_freq[:, None, :]).reshape(batch_size, -1)
    return keep_lowest(hidden.astype(jnp.float32), kept[0] * kept[1])


def take_patches(patches: Array, ids: Int[Array, "B n"]) -> Array:
    """Selects rows ``ids`` of every clip's patches: [B N ...] to [B n ...]."""
    index = ids.reshape(*ids.shape, *(1,) * (patches.ndim - 2))
    return jnp.take_along_axis(patches, index, axis=1, mode="clip")
