"""The blocks of Whisper: pre-norm, keys without a bias, and in the decoder attention to the encoded audio."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.nn.dense import Dense
from alm_jax.nn.kv_cache import KVCache, append
from alm_jax.nn.mlp import Mlp
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import truncated_normal
from alm_jax.ops.attention import attend

# Default of torch.nn.LayerNorm, used by the released code.
LAYER_NORM_EPS = 1e-5


class WhisperAttention(nn.Module):
    """x -> W_o attend(W_q x, W_k s, W_v s) for states s of the same or of another sequence; W_k alone has no bias.

    (Radford et al. 2022, arXiv 2212.04356, and OpenAI's ``MultiHeadAttention``. A bias of the keys would add the same
    to all scores of a query.)

    Parameters: ``query``, ``key``, ``value`` kernels [D H K] and ``out`` kernel [H K D].
    """

    num_heads: int
    width: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = truncated_normal

    def setup(self) -> None:
        """Makes the four projections."""

        def dense(name: str) -> Dense:
            return Dense(
                (self.num_heads, self.width // self.num_heads),
                ("embed", "heads", "head_dim"),
                self.dtype,
                use_bias=name != "key",
                kernel_init=self.kernel_init,
            )

        self.query, self.key, self.value = dense("query"), dense("key"), dense("value")
        self.out = Dense(
            (self.width,), ("heads", "head_dim", "embed"), self.dtype, kernel_init=self.kernel_init
        )

    def read(self, source: Float[Array, "B S D"]) -> tuple[Float[Array, "B S H K"], Float[Array, "B S H K"]]:
        """Returns keys and values of ``source``."""
        return self.key(source), self.value(source)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        key: Float[Array, "B S H K"],
        value: Float[Array, "B S H K"],
        *,
        mask: Bool[Array, "B 1 #L S"] | None = None,
    ) -> Float[Array, "B L D"]:
        """Attends from ``x`` to keys and values of `read`; ``mask`` is True where it may."""
        return self.out(attend(self.query(x), key, value, mask=mask))


class WhisperEncoderBlock(nn.Module):
    """x = x + attention(norm(x)); x = x + mlp(norm(x)); the body of a scan: returns (x, None)."""

    num_heads: int
    mlp_dim: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = truncated_normal

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], mask: Bool[Array, "B N"] | None
    ) -> tuple[Float[Array, "B N D"], None]:
        init = self.kernel_init
        attention = WhisperAttention(self.num_heads, x.shape[-1], self.dtype, init, name="attention")
        y = LayerNorm(self.dtype, LAYER_NORM_EPS, name="attention_norm")(x)
        x = x + attention(y, *attention.read(y), mask=None if mask is None else mask[:, None, None, :])
        y = LayerNorm(self.dtype, LAYER_NORM_EPS, name="mlp_norm")(x)
        return x + Mlp(self.mlp_dim, self.dtype, init, name="mlp")(y), None


class WhisperDecoderBlock(nn.Module):
    """Causal self-attention, attention to the audio, and a feed-forward half, each x = x + f(norm(x)).

    The body of a scan that carries (x, cache).
    """

    num_heads: int
    mlp_dim: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = truncated_normal

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "B L D"], KVCache | None],
        layer: Int[Array, ""],
        audio: Float[Array, "B N D"] | tuple[Float[Array, "B N H K"], Float[Array, "B N H K"]],
        visible: Bool[Array, "B 1 L S"],
        audio_mask: Bool[Array, "B N"] | None,
    ) -> tuple[tuple[Float[Array, "B L D"], KVCache | None], tuple[Array, Array] | None]:
        """Applies the block; ``audio`` is states, or this layer's keys and values of them, which are returned for a
        cache."""
        x, cache = carry
        init, width = self.kernel_init, x.shape[-1]
        attention = WhisperAttention(self.num_heads, width, self.dtype, init, name="attention")
        y = LayerNorm(self.dtype, LAYER_NORM_EPS, name="attention_norm")(x)
        key, value = attention.read(y)
        if cache is not None:
            cache, key, value = append(cache, layer, key, value)
        x = x + attention(y, key, value, mask=visible)

        cross = WhisperAttention(self.num_heads, width, self.dtype, init, name="cross_attention")
        y = LayerNorm(self.dtype, LAYER_NORM_EPS, name="cross_attention_norm")(x)
        key_value = audio if isinstance(audio, tuple) else cross.read(audio)
        x = x + cross(y, *key_value, mask=None if audio_mask is None else audio_mask[:, None, None, :])

        y = LayerNorm(self.dtype, LAYER_NORM_EPS, name="mlp_norm")(x)
        x = x + Mlp(self.mlp_dim, self.dtype, init, name="mlp")(y)
        return (x, cache), None if cache is None else key_value
