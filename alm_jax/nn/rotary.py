"""Rotary positions (RoPE): queries and keys turn by an angle that grows with their position.

Su et al. 2021, equation 34 (https://arxiv.org/abs/2104.09864), in the half-rotation of Llama and Qwen: dimension i is
paired with i + K/2, not with its neighbour.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from alm_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Scaling of the slow rotations to texts longer than those of pre-training, with the values of Llama 3.1."""

    factor: float = 8.0
    """Factor of wave lengths beyond ``original_max_positions / low_freq_factor``."""
    low_freq_factor: float = 1.0
    """Sets the wave length beyond which ``factor`` applies fully."""
    high_freq_factor: float = 4.0
    """Sets the wave length below which nothing changes; wave lengths between the two limits are interpolated."""
    original_max_positions: int = 8192
    """Number of positions in pre-training."""

    def __post_init__(self) -> None:
        if self.high_freq_factor <= self.low_freq_factor:
            raise UserError(
                f"high_freq_factor {self.high_freq_factor} must be above low_freq_factor {self.low_freq_factor}"
            )


class RotaryTables(NamedTuple):
    """Cosine and sine of every token's angles; K/2 of them, for both halves of a head."""

    cos: Float[Array, "B L half"]
    sin: Float[Array, "B L half"]


def inverse_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> Float[np.ndarray, " half"]:
    """theta^(-2i/K) radians a position for i < K/2, float64; ``scaling`` as in Llama 3.1's code.

    Raises:
        UserError: ``head_dim`` is odd.
    """
    if head_dim % 2:
        raise UserError(f"rotary positions need heads of an even size, not {head_dim}")
    rates = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    if scaling is None:
        return rates
    # Waves in the original length: above high_freq_factor a rate is kept, below low_freq_factor it is divided.
    waves = scaling.original_max_positions * rates / (2 * np.pi)
    kept = (waves - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return kept * rates + (1 - kept) * rates / scaling.factor


def rotary_tables(
    positions: Int[Array, "B L"], inverse_freq: Float[np.ndarray, " half"], dtype: DTypeLike
) -> RotaryTables:
    """Tables of ``positions`` in float32, as published, or in float64 where ``dtype`` is."""
    wide = jnp.promote_types(dtype, jnp.float32)
    angles = positions.astype(wide)[:, :, None] * jnp.asarray(inverse_freq, wide)[None, None, :]
    return RotaryTables(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "B L H K"], tables: RotaryTables) -> Float[Array, "B L H K"]:
    """``x`` with each pair (i, i + K/2) turned by its token's angle; computed as wide as the tables."""
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = tables.cos[:, :, None, :], tables.sin[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
