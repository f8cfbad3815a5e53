"""Normalisation of a row over its time and channels together, which the stereo EnCodec applies after convolutions."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from alm_jax.nn.parameter import declare, ones, zeros

# torch.nn.GroupNorm's, which the released code keeps.
_EPSILON = 1e-5


class RowNorm(nn.Module):
    """(x - mean) / sqrt(var + 1e-5) * scale + bias, mean and variance over all frames and channels of each row.

    `torch.nn.GroupNorm` with one group (Wu and He 2018, arXiv 1803.08494), in float32 or wider.

    Parameters: ``scale`` and ``bias`` [channels].
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T channels"]) -> Float[Array, "B T channels"]:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - jnp.mean(wide, axis=(1, 2), keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=(1, 2), keepdims=True)
        scale, bias = (
            declare(self, name, init, (x.shape[-1],), ("channels",))[None, None]
            for name, init in (("scale", ones), ("bias", zeros))
        )
        return (centred * lax.rsqrt(variance + _EPSILON) * scale + bias).astype(self.dtype)
