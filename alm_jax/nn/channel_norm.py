"""Normalisation of each channel over time, which wav2vec 2.0 applies to its first convolution."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from alm_jax.nn.parameter import declare, ones, zeros

# Default of torch.nn.GroupNorm, used by the released code.
_EPSILON = 1e-5


class ChannelNorm(nn.Module):
    """(x - mean) / sqrt(var + 1e-5) * scale + bias, mean and variance over the frames of each channel of each row.

    `torch.nn.GroupNorm` with a group for each channel (Wu and He 2018, arXiv 1803.08494), in float32 or wider.

    Parameters: ``scale`` and ``bias`` [channels].
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T channels"], mask: Bool[Array, "B T"] | None = None
    ) -> Float[Array, "B T channels"]:
        """Normalises ``x``; the statistics are those of the frames where ``mask`` is True, of all without one."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if mask is None:
            mask = jnp.ones(x.shape[:2], bool)
        real = mask[:, :, None]
        count = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
        centred = wide - jnp.sum(jnp.where(real, wide, 0), axis=1, keepdims=True) / count
        variance = jnp.sum(jnp.where(real, jnp.square(centred), 0), axis=1, keepdims=True) / count
        scale, bias = (
            declare(self, name, init, (x.shape[-1],), ("channels",))[None, None]
            for name, init in (("scale", ones), ("bias", zeros))
        )
        return (centred * lax.rsqrt(variance + _EPSILON) * scale + bias).astype(self.dtype)
