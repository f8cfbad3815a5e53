"""The two transformer blocks: post-norm, of BERT, and pre-norm, of ViT."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alm_jax.nn.attention import SelfAttention
from alm_jax.nn.dropout import dropout
from alm_jax.nn.mlp import Mlp, gelu
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import truncated_normal


class PostNormBlock(nn.Module):
    """x = norm(x + attention(x)); x = norm(x + mlp(x)). (Devlin et al. 2018, https://arxiv.org/abs/1810.04805)

    Written as the body of `nn.scan`: returns (x, None).
    """

    num_heads: int
    mlp_dim: int
    epsilon: float
    dropout_rate: float
    """Dropout rate of attention weights and both branches; needs the "dropout" stream unless 0."""
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = truncated_normal

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], mask: Bool[Array, "B L"]
    ) -> tuple[Float[Array, "B L D"], None]:
        def make_key() -> Array | None:
            return self.make_rng("dropout") if self.dropout_rate > 0.0 else None

        y = SelfAttention(
            self.num_heads,
            self.dtype,
            dropout_rate=self.dropout_rate,
            kernel_init=self.kernel_init,
            name="attention",
        )(x, mask=mask[:, None, None, :], dropout_key=make_key())
        y = dropout(y, self.dropout_rate, make_key())
        x = LayerNorm(self.dtype, self.epsilon, name="attention_norm")(x + y)
        y = Mlp(self.mlp_dim, self.dtype, self.kernel_init, name="mlp")(x)
        y = dropout(y, self.dropout_rate, make_key())
        return LayerNorm(self.dtype, self.epsilon, name="mlp_norm")(x + y), None


class PreNormBlock(nn.Module):
    """x = x + attention(norm(x)); x = x + mlp(norm(x)). (Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929)

    Written as the body of `nn.scan`: returns (x, None). The stack needs a norm after its last block.
    """

    num_heads: int
    mlp_dim: int
    epsilon: float
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = truncated_normal
    activation: Callable[[Array], Array] = gelu

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], mask: Bool[Array, "B L"] | Bool[Array, "B 1 L L"] | None
    ) -> tuple[Float[Array, "B L D"], None]:
        """Applies the block; ``mask`` says which tokens are real, or which token (row) attends to which (column)."""
        if mask is not None and mask.ndim == 2:
            mask = mask[:, None, None, :]
        attention = SelfAttention(self.num_heads, self.dtype, kernel_init=self.kernel_init, name="attention")
        y = LayerNorm(self.dtype, self.epsilon, name="attention_norm")(x)
        x = x + attention(y, mask=mask)
        y = LayerNorm(self.dtype, self.epsilon, name="mlp_norm")(x)
        mlp = Mlp(self.mlp_dim, self.dtype, self.kernel_init, self.activation, name="mlp")
        return x + mlp(y), None
