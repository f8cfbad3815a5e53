"""GPT-2: the text tower of MS-CLAP 2023, and the decoder of Pengi and ClapCap.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (https://github.com/openai/gpt-2).
Pre-norm blocks, learned positions, GELU's tanh approximation; the table of embeddings is the head.
"""

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.encoders.family import Family, TextTowerConfig
from alm_jax.errors import UserError
from alm_jax.nn.causal_attention import CausalAttention, look_back
from alm_jax.nn.dense import Embed
from alm_jax.nn.dropout import dropout
from alm_jax.nn.kv_cache import CacheShape, KVCache
from alm_jax.nn.language_model import Output, find_last, insert, project, take_rows
from alm_jax.nn.mlp import Mlp, gelu_tanh
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import KERNEL_INITS
from alm_jax.nn.rematerialise import Remat, rematerialise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpt2Config(TextTowerConfig):
    """Shape of a GPT-2. Defaults are those of the small model, 124 M parameters."""

    vocab_size: int = 50257
    """Vocabulary size: entries of the tokenizer."""
    width: int = 768
    """Width: size of a token's hidden state."""
    num_layers: int = 12
    """Transformer blocks."""
    num_heads: int = 12
    """Attention heads; divides the width."""
    mlp_dim: int = 3072
    """Hidden size of the feed-forward layers."""
    max_positions: int = 1024
    """Rows of the position table: the maximum tokens of a text."""
    layer_norm_eps: float = 1e-5
    """Epsilon of LayerNorm."""
    dropout: float = 0.1
    """Dropout rate of embeddings, attention weights and residual branches in training."""
    compat: bool = False
    """Position of the output "last". True, as in MS-CLAP 2023's code: (number of ids other than 0) - 1, which a
    literal "!" (id 0) in a caption shifts to the left. False: the last real token."""
    kernel_init: Literal["normal", "fan_in"] = "normal"
    """Initialisation of kernels: N(0, 0.02^2) as published, or N(0, 1 / fan-in), with which a narrow model learns
    faster."""

    tied_head: ClassVar[bool] = True
    """The output head is the table of embeddings."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise UserError(
                f"text width {self.width} is not a multiple of num_heads {self.num_heads}; change one of them"
            )

    @property
    def cache_shape(self) -> CacheShape:
        """Sizes of the key-value cache, for `alm_jax.nn.kv_cache.make_cache`."""
        return CacheShape(self.num_layers, self.num_heads, self.width // self.num_heads)


SMALL = Gpt2Config()
MEDIUM = Gpt2Config(width=1024, num_layers=24, num_heads=16, mlp_dim=4096)
LARGE = Gpt2Config(width=1280, num_layers=36, num_heads=20, mlp_dim=5120)
XL = Gpt2Config(width=1600, num_layers=48, num_heads=25, mlp_dim=6400)
NANO = Gpt2Config(
    vocab_size=1000, width=128, num_layers=2, num_heads=4, mlp_dim=512, max_positions=64, kernel_init="fan_in"
)
VARIANTS = {"small": SMALL, "medium": MEDIUM, "large": LARGE, "xl": XL, "nano": NANO}


class Gpt2Block(nn.Module):
    """x = x + attention(norm(x)); x = x + mlp(norm(x)); the body of a scan that carries (x, cache)."""

    config: Gpt2Config
    dropout_rate: float
    """Dropout rate of attention weights and both branches; needs the "dropout" stream unless 0."""
    dtype: jnp.dtype
    has_prefix: bool = False

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "B L D"], KVCache | None],
        layer: Int[Array, ""],
        visible: Bool[Array, "B 1 L S"],
    ) -> tuple[tuple[Float[Array, "B L D"], KVCache | None], None]:
        def make_key() -> Array | None:
            return self.make_rng("dropout") if self.dropout_rate > 0.0 else None

        config, (x, cache) = self.config, carry
        init = KERNEL_INITS[config.kernel_init]
        y = LayerNorm(self.dtype, config.layer_norm_eps, name="attention_norm")(x)
        attention = CausalAttention(
            config.num_heads, self.dtype, self.dropout_rate, init, self.has_prefix, name="attention"
        )
        y, cache = attention(y, layer, cache, visible, make_key())
        x = x + dropout(y, self.dropout_rate, make_key())
        y = LayerNorm(self.dtype, config.layer_norm_eps, name="mlp_norm")(x)
        y = Mlp(config.mlp_dim, self.dtype, init, gelu_tanh, name="mlp")(y)
        return (x + dropout(y, self.dropout_rate, make_key()), cache), None


class Gpt2(nn.Module):
    """Module from token ids and their mask to logits or states, of every token or of each row's last.

    Parameters: ``token_embed``, ``position_embed``, ``blocks`` (every array with a leading axis of layers), ``norm``.
    """

    config: Gpt2Config
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
        train: bool = False,
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
            train: drops out, by the stream "dropout".

        Returns:
            The output; with a ``cache``, the pair of the output and the cache that now also holds these tokens.

        Raises:
            UserError: there are more tokens, or slots in the cache, than positions.
        """
        config = self.config
        length = ids.shape[1] if cache is None else cache.mask.shape[1]
        if length > config.max_positions:
            raise UserError(
                f"texts of {length} tokens do not fit into max_positions {config.max_positions}: shorten the "
                "tokenizer's max_length or the cache"
            )
        rate = config.dropout if train else 0.0
        embed = Embed(config.vocab_size, config.width, ("vocab", "embed"), name="token_embed")
        x = insert(embed(ids).astype(self.dtype), embeds, embeds_mask)
        cache, positions, visible = look_back(cache, mask, prefix, segments)
        has_prefix = prefix is not None or segments is not None
        position_embed = Embed(
            config.max_positions, config.width, ("positions", "embed"), name="position_embed"
        )
        x = x + position_embed(positions).astype(self.dtype)
        x = dropout(x, rate, self.make_rng("dropout") if rate else None)

        block = rematerialise(Gpt2Block, self.remat)
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        (x, cache), _ = blocks(config, rate, self.dtype, has_prefix, name="blocks")(
            (x, cache), jnp.arange(config.num_layers), visible
        )
        x = LayerNorm(self.dtype, config.layer_norm_eps, name="norm")(x)
        if output == "last":
            compat_last = jnp.maximum(jnp.sum(ids != 0, axis=1) - 1, 0)
            x = take_rows(x, compat_last if config.compat else find_last(mask))
        elif output == "next":
            x = take_rows(x, find_last(mask))
        if output in ("logits", "next"):
            x = project(x, embed.embedding, tied=True)
        return x if cache is None else (x, cache)


FAMILY = Family(
    name="gpt2",
    kind="language model",
    config_type=Gpt2Config,
    build=Gpt2,
    variants=VARIANTS,
    example=lambda config: (jax.ShapeDtypeStruct((2, 4), jnp.int32), jax.ShapeDtypeStruct((2, 4), jnp.bool_)),
    takes=frozenset({"train"}),
    source="https://github.com/openai/gpt-2",
)
