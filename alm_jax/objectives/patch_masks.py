"""Which patches of a clip an objective hides: the choice as a config, and the masks of a batch."""

import dataclasses
from typing import Any, TypeAlias

import jax
from jaxtyping import Array, Int

from alm_jax.errors import UserError
from alm_jax.ops.patch_masking import PatchMask, mask_structured, mask_unstructured, num_kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnstructuredMaskConfig:
    """Hides patches chosen uniformly at random."""

    ratio: float = 0.8
    """Fraction of the patches that are hidden; AudioMAE pre-trains with 0.8."""

    def check(self, grid: tuple[int, int]) -> None:
        """Raises UserError where nothing of a (time, frequency) grid would be left."""
        _check_ratios(grid, {"patches": (grid[0] * grid[1], self.ratio)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class StructuredMaskConfig:
    """Hides whole time steps and whole frequency bands."""

    time_ratio: float = 0.7
    """Fraction of the time steps that are hidden."""
    freq_ratio: float = 0.3
    """Fraction of the frequency bands that are hidden."""

    def check(self, grid: tuple[int, int]) -> None:
        """Raises UserError where nothing of a (time, frequency) grid would be left."""
        _check_ratios(grid, {"steps": (grid[0], self.time_ratio), "bands": (grid[1], self.freq_ratio)})


MaskConfig: TypeAlias = UnstructuredMaskConfig | StructuredMaskConfig


def _check_ratios(grid: tuple[int, int], hidden: dict[str, tuple[int, float]]) -> None:
    for what, (size, ratio) in hidden.items():
        try:
            num_kept(size, ratio)
        except ValueError as error:
            raise UserError(
                f"a mask hides {ratio} of {size} {what} (a grid of {grid[0]} x {grid[1]}) and leaves none; lower the "
                "ratio, or take smaller patches"
            ) from error
    if not any(ratio for _, ratio in hidden.values()):
        raise UserError("a mask that hides nothing leaves nothing to learn; raise its ratio")


def draw_masks(mask: MaskConfig, grid: tuple[int, int], keys: Any) -> PatchMask:
    """One mask of a (time, frequency) grid for each of the B ``keys``."""

    def draw(key: Any) -> PatchMask:
        if isinstance(mask, UnstructuredMaskConfig):
            drawn = mask_unstructured(key, 1, grid[0] * grid[1], mask.ratio)
        else:
            drawn = mask_structured(key, 1, grid, time_ratio=mask.time_ratio, freq_ratio=mask.freq_ratio)
        return jax.tree.map(lambda x: x[0], drawn)

    return jax.vmap(draw)(keys)


def evaluation_masks(mask: MaskConfig, grid: tuple[int, int], index: Int[Array, " B"]) -> PatchMask:
    """The masks of recordings in evaluation: each always has the same, by its place in the split."""
    return draw_masks(mask, grid, jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(index))
