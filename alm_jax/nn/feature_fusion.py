"""Attentional feature fusion: two maps joined by a gate computed from both.

Dai et al. 2021, https://arxiv.org/abs/2009.14082, equations 2 to 4; as LAION-CLAP has it inside HTSAT's patch
embedding (Wu et al. 2022, https://arxiv.org/abs/2211.06687, section 2.3).
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alm_jax.nn.dense import Dense
from alm_jax.nn.norm import BatchNorm
from alm_jax.nn.parameter import truncated_normal

REDUCTION = 4
"""Reduction factor of the channels inside the gate."""


class FeatureFusion(nn.Module):
    """2 x w + 2 y (1 - w), with w = sigmoid(local(x + y) + global(x + y)) for every element.

    Both paths are Dense -> BatchNorm -> ReLU -> Dense -> BatchNorm over the channels, narrowed to a quarter between;
    the global one sees the mean of the map. Parameters: ``local`` and ``global``, each ``down``, ``down_norm``, ``up``,
    ``up_norm``; and their ``batch_stats``.
    """

    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = truncated_normal

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B rows columns D"],
        y: Float[Array, "B rows columns D"],
        *,
        train: bool,
        mask: Bool[Array, " B"] | None = None,
    ) -> Float[Array, "B rows columns D"]:
        """Joins ``x`` and ``y``; in training the statistics are those of the rows where ``mask`` is True."""
        both = x + y
        wide = jnp.promote_types(self.dtype, jnp.float32)
        # A mean of many positions loses bits in bfloat16.
        mean = jnp.mean(both.astype(wide), axis=(1, 2), keepdims=True).astype(self.dtype)
        gates = [
            _Gate(self.dtype, self.kernel_init, name=name)(seen, train=train, mask=mask)
            for name, seen in (("local", both), ("global", mean))
        ]
        weight = nn.sigmoid(gates[0] + gates[1])
        return (2.0 * x * weight + 2.0 * y * (1.0 - weight)).astype(self.dtype)


class _Gate(nn.Module):
    """One path, to the sigmoid's argument in float32 or wider."""

    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B rows columns D"],
        *,
        train: bool,
        mask: Bool[Array, " B"] | None,
    ) -> Float[Array, "B rows columns D"]:
        width = x.shape[-1]

        def layer(name: str, size: int, axes: tuple[str, str], x: Array) -> Array:
            y = Dense((size,), axes, self.dtype, kernel_init=self.kernel_init, name=name)(x)
            norm = BatchNorm(axes[1], name=f"{name}_norm")
            return norm(y, train=train, mask=mask)

        hidden = nn.relu(layer("down", width // REDUCTION, ("embed", "mlp"), x))
        return layer("up", width, ("mlp", "embed"), hidden)
