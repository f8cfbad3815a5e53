"""Llama and Qwen2: one module; Qwen2 adds biases to queries, keys and values.

Touvron et al. 2023 (https://arxiv.org/abs/2302.13971, https://arxiv.org/abs/2307.09288), Llama 3
(https://arxiv.org/abs/2407.21783), Yang et al. 2024 (https://arxiv.org/abs/2407.10671). Pre-norm blocks of RMSNorm,
rotary positions, grouped-query attention and SwiGLU.
"""

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.encoders.family import Family, TextTowerConfig
from alm_jax.errors import UserError
from alm_jax.nn.causal_attention import RotaryAttention, look_back
from alm_jax.nn.dense import Embed
from alm_jax.nn.gated_mlp import GatedMlp
from alm_jax.nn.kv_cache import CacheShape, KVCache
from alm_jax.nn.language_model import Head, Output, find_last, insert, project, take_rows
from alm_jax.nn.parameter import KERNEL_INITS
from alm_jax.nn.rematerialise import Remat, rematerialise
from alm_jax.nn.rms_norm import RmsNorm
from alm_jax.nn.rotary import RopeScaling, RotaryTables, inverse_frequencies, rotary_tables


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig(TextTowerConfig):
    """Shape of a Llama. Defaults are those of the first 7B model, which Vicuna and LTU start from."""

    vocab_size: int = 32000
    """Vocabulary size: entries of the tokenizer."""
    width: int = 4096
    """Width: size of a token's hidden state."""
    num_layers: int = 32
    """Transformer blocks."""
    num_heads: int = 32
    """Heads of queries; the width divided by them is the size of a head, which is even."""
    num_kv_heads: int = 32
    """Heads of keys and values; divides num_heads. Fewer than num_heads: grouped-query attention."""
    mlp_dim: int = 11008
    """Hidden size of the gated feed-forward layers."""
    max_positions: int = 2048
    """Tokens of the longest text in training. Longer texts are accepted, as published, but results get worse."""
    rms_norm_eps: float = 1e-6
    """Epsilon of RMSNorm, added to the mean square."""
    rope_theta: float = 10000.0
    """Base of the rotary wave lengths."""
    rope_scaling: RopeScaling | None = None
    """Llama 3.1's scaling of the rotary wave lengths; None: no scaling."""
    tied_head: bool = False
    """Whether the output head is the table of embeddings."""
    kernel_init: Literal["normal", "fan_in"] = "normal"
    """Initialisation of kernels: N(0, 0.02^2) as published, or N(0, 1 / fan-in), with which a narrow model learns
    faster."""

    has_qkv_bias: ClassVar[bool] = False
    """Whether queries, keys and values have biases."""

    def __post_init__(self) -> None:
        if self.width % (2 * self.num_heads):
            raise UserError(
                f"text width {self.width} does not make num_heads {self.num_heads} heads of an even size; change one "
                "of them"
            )
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}; change one of them"
            )

    @property
    def cache_shape(self) -> CacheShape:
        """Sizes of the key-value cache, for `alm_jax.nn.kv_cache.make_cache`."""
        return CacheShape(self.num_layers, self.num_kv_heads, self.width // self.num_heads)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2Config(LlamaConfig):
    """Shape of a Qwen2. Defaults are those of the 7B model."""

    vocab_size: int = 152064
    width: int = 3584
    num_layers: int = 28
    num_heads: int = 28
    num_kv_heads: int = 4
    mlp_dim: int = 18944
    max_positions: int = 131072
    rope_theta: float = 1e6

    has_qkv_bias: ClassVar[bool] = True


LLAMA_7B = LlamaConfig()
LLAMA_13B = LlamaConfig(width=5120, num_layers=40, num_heads=40, num_kv_heads=40, mlp_dim=13824)
LLAMA2_7B = dataclasses.replace(LLAMA_7B, max_positions=4096, rms_norm_eps=1e-5)
LLAMA2_13B = dataclasses.replace(LLAMA_13B, max_positions=4096, rms_norm_eps=1e-5)
LLAMA3_8B = LlamaConfig(
    vocab_size=128256,
    num_kv_heads=8,
    mlp_dim=14336,
    max_positions=8192,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
)
LLAMA3_1_8B = dataclasses.replace(LLAMA3_8B, max_positions=131072, rope_scaling=RopeScaling())
LLAMA3_2_1B = dataclasses.replace(
    LLAMA3_1_8B,
    width=2048,
    num_layers=16,
    mlp_dim=8192,
    rope_scaling=RopeScaling(factor=32.0),
    tied_head=True,
)
LLAMA3_2_3B = dataclasses.replace(LLAMA3_2_1B, width=3072, num_layers=28, num_heads=24)
NANO = LlamaConfig(
    vocab_size=1000,
    width=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    mlp_dim=256,
    max_positions=64,
    kernel_init="fan_in",
)
VARIANTS = {
    "llama_7b": LLAMA_7B,
    "llama_13b": LLAMA_13B,
    "llama2_7b": LLAMA2_7B,
    "llama2_13b": LLAMA2_13B,
    "llama3_8b": LLAMA3_8B,
    "llama3_1_8b": LLAMA3_1_8B,
    "llama3_2_1b": LLAMA3_2_1B,
    "llama3_2_3b": LLAMA3_2_3B,
    "nano": NANO,
}

QWEN2_7B = Qwen2Config()
QWEN2_0_5B = Qwen2Config(
    vocab_size=151936,
    width=896,
    num_layers=24,
    num_heads=14,
    num_kv_heads=2,
    mlp_dim=4864,
    tied_head=True,
)
QWEN2_1_5B = dataclasses.replace(
    QWEN2_0_5B, width=1536, num_layers=28, num_heads=12, num_kv_heads=2, mlp_dim=8960
)
QWEN2_NANO = Qwen2Config(
    vocab_size=1000,
    width=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    mlp_dim=256,
    max_positions=64,
    tied_head=True,
    kernel_init="fan_in",
)
QWEN2_VARIANTS = {
    "qwen2_0_5b": QWEN2_0_5B,
    "qwen2_1_5b": QWEN2_1_5B,
    "qwen2_7b": QWEN2_7B,
    "nano": QWEN2_NANO,
}


class LlamaBlock(nn.Module):
    """x = x + attention(norm(x)); x = x + mlp(norm(x)); the body of a scan that carries (x, cache)."""

    config: LlamaConfig
    dtype: jnp.dtype
    has_prefix: bool = False

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "B L D"], KVCache | None],
        layer: Int[Array, ""],
        visible: Bool[Array, "B 1 L S"],
        tables: RotaryTables,
    ) -> tuple[tuple[Float[Array, "B L D"], KVCache | None], None]:
        config, (x, cache) = self.config, carry
        init = KERNEL_INITS[config.kernel_init]
        y = RmsNorm(self.dtype, config.rms_norm_eps, name="attention_norm")(x)
        y, cache = RotaryAttention(
            config.num_heads,
            config.num_kv_heads,
            config.width // config.num_heads,
            self.dtype,
            config.has_qkv_bias,
            init,
            self.has_prefix,
            name="attention",
        )(y, layer, cache, visible, tables)
        x = x + y
        y = RmsNorm(self.dtype, config.rms_norm_eps, name="mlp_norm")(x)
        x = x + GatedMlp(config.mlp_dim, self.dtype, kernel_init=init, name="mlp")(y)
        return (x, cache), None


class Llama(nn.Module):
    """Module from token ids and their mask to logits or states, of every token or of each row's last.

    Parameters: ``token_embed``, ``blocks`` (every array with a leading axis of layers), ``norm``, and ``head`` unless
    the config ties it.
    """

    config: LlamaConfig
    dtype: jnp.dtype
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self,
        ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"],
        *,
        embeds: Float[Array, "B L D"] | None = None,
        embeds_mask: Bool[Array, "B L"] | None = None,
        prefix: Bool[Array, "B L"] | None = None,
        segments: Int[Array, "B L"] | None = None,
        cache: KVCache | None = None,
        output: Output = "logits",
    ) -> Array | tuple[Array, KVCache]:
        """Reads ``ids``, after those that ``cache`` has read.

        Args:
            ids: tokens; what lies under padding has no influence on real ones.
            mask: True for real tokens; they may be padded left or right. Positions count real tokens.
            embeds: vectors, for example of audio, that replace the embeddings of ``ids``.
            embeds_mask: True where ``embeds`` replaces the embedding of a token; None: everywhere.
            prefix: True for tokens, before the others of this pass, that see each other in both directions (Raffel et
                al. 2020, section 3.2.1); None: every token sees those before it alone.
            segments: the number of the text that a token is of, where a row holds several, one after another: they do
                not see each other, and each has positions from 0. Not with a cache.
            cache: of `make_cache(config.cache_shape, ...)`; for a prompt and then for each of its tokens' successors.
            output: see `alm_jax.nn.language_model.Output`.

        Returns:
            The output; with a ``cache``, the pair of the output and the cache that now also holds these tokens.
        """
        config = self.config
        embed = Embed(config.vocab_size, config.width, ("vocab", "embed"), name="token_embed")
        x = insert(embed(ids).astype(self.dtype), embeds, embeds_mask)
        cache, positions, visible = look_back(cache, mask, prefix, segments)
        has_prefix = prefix is not None or segments is not None
        frequencies = inverse_frequencies(
            config.width // config.num_heads, config.rope_theta, config.rope_scaling
        )
        block = rematerialise(LlamaBlock, self.remat)
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        (x, cache), _ = blocks(config, self.dtype, has_prefix, name="blocks")(
            (x, cache),
            jnp.arange(config.num_layers),
            visible,
            rotary_tables(positions, frequencies, self.dtype),
        )
        x = RmsNorm(self.dtype, config.rms_norm_eps, name="norm")(x)
        if output in ("last", "next"):
            x = take_rows(x, find_last(mask))
        if output in ("logits", "next"):
            tied = config.tied_head
            x = project(x, embed.embedding, tied=True) if tied else Head(config.vocab_size, name="head")(x)
        return x if cache is None else (x, cache)


def _example(config: LlamaConfig) -> tuple[jax.ShapeDtypeStruct, ...]:
    return jax.ShapeDtypeStruct((2, 4), jnp.int32), jax.ShapeDtypeStruct((2, 4), jnp.bool_)


QWEN2 = Family(
    name="qwen2",
    kind="language model",
    config_type=Qwen2Config,
    build=Llama,
    variants=QWEN2_VARIANTS,
    example=_example,
    source="https://arxiv.org/abs/2407.10671",
)
FAMILY = Family(
    name="llama",
    kind="language model",
    config_type=LlamaConfig,
    build=Llama,
    variants=VARIANTS,
    example=_example,
    source="https://arxiv.org/abs/2302.13971, https://arxiv.org/abs/2307.09288, https://arxiv.org/abs/2407.21783",
)
