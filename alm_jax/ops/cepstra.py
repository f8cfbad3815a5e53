"""Cepstra of a log-mel and their slopes over time: the MFCCs from which HuBERT's first units are computed.

Davis and Mermelstein 1980 (https://doi.org/10.1109/TASSP.1980.1163420); Hsu et al. 2021
(https://arxiv.org/abs/2106.07447, section 2.1): 13 cepstra, their first and their second slopes, 39 numbers a frame.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

REACH = 2
"""Number of frames on either side that a slope is fitted to: the default of Kaldi and torchaudio."""


def cepstra(log_mel: Float[Array, "B T F"], num_cepstra: int) -> Float[Array, "B T cepstra"]:
    """The first coefficients of the orthonormal DCT-II over the bands, float32 or wider."""
    num_bands = log_mel.shape[-1]
    band, order = np.arange(num_bands), np.arange(num_cepstra)
    basis = np.cos(np.pi / num_bands * (band[:, None] + 0.5) * order) * np.sqrt(2 / num_bands)
    basis[:, 0] /= np.sqrt(2)
    wide = jnp.promote_types(log_mel.dtype, jnp.float32)
    return jnp.einsum("btf,fc->btc", log_mel.astype(wide), jnp.asarray(basis, wide), precision="highest")


def slopes(x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
    """The slope of the least-squares line through the five frames about each.

    Frames before the first are the first, those after the last real one are the last real one, so that padding has no
    influence on real frames. ``mask`` is True for real frames, padding at the end.
    """
    num_frames = x.shape[1]
    last = jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.int32) - 1, 0)[:, None]
    frame = jnp.arange(num_frames)[None]

    def shifted(offset: int) -> Array:
        source = jnp.clip(frame + offset, 0, last)
        return jnp.take_along_axis(x, source[:, :, None], axis=1, mode="clip")

    rise = sum(
        (offset * (shifted(offset) - shifted(-offset)) for offset in range(1, REACH + 1)), jnp.zeros_like(x)
    )
    return rise / (2 * sum(offset**2 for offset in range(1, REACH + 1)))
