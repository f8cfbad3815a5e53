"""BART: a bidirectional encoder and a causal decoder, the captioner of EnCLAP.

Lewis et al. 2020 (https://arxiv.org/abs/1910.13461). Post-norm blocks with exact GELU, learned positions whose table
starts with two unused rows, a norm after the embeddings; encoder, decoder and output head share one table of
embeddings.
"""

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.encoders.family import Family
from alm_jax.errors import UserError
from alm_jax.nn.causal_attention import CausalAttention, look_back
from alm_jax.nn.cross_attention import CrossAttention, CrossKeyValue, Seq2SeqCache, check_source
from alm_jax.nn.dense import Embed
from alm_jax.nn.dropout import dropout
from alm_jax.nn.kv_cache import CacheShape, KVCache
from alm_jax.nn.language_model import Output, find_last, insert, project, take_rows
from alm_jax.nn.mlp import Mlp
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import KERNEL_INITS
from alm_jax.nn.rematerialise import Remat, rematerialise
from alm_jax.nn.transformer import PostNormBlock

# Default of torch.nn.LayerNorm, used by the released code.
LAYER_NORM_EPS = 1e-5
# fairseq counts positions from pad_id + 1, whatever is padded; the rows before it are never looked up.
POSITION_OFFSET = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class BartConfig:
    """Shape of a BART. Defaults are those of the base model."""

    vocab_size: int = 50265
    """Vocabulary size: entries of the tokenizer."""
    width: int = 768
    """Width: size of a token's hidden state."""
    num_layers: int = 6
    """Blocks of the encoder."""
    num_decoder_layers: int = 6
    """Blocks of the decoder."""
    num_heads: int = 12
    """Attention heads; divides the width."""
    mlp_dim: int = 3072
    """Hidden size of the feed-forward layers."""
    max_positions: int = 1024
    """Maximum tokens of a source, and of a text."""
    dropout: float = 0.1
    """Dropout rate of embeddings, attention weights and residual branches in training."""
    pad_id: int = 1
    """Id of the padding token."""
    start_id: int = 2
    """Id of the token that every target text starts with, </s>."""
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
    def head_dim(self) -> int:
        """Size of a head."""
        return self.width // self.num_heads

    @property
    def cache_shape(self) -> CacheShape:
        """Sizes of the key-value cache, for `alm_jax.nn.kv_cache.make_cache`."""
        return CacheShape(self.num_decoder_layers, self.num_heads, self.head_dim)


BASE = BartConfig()
LARGE = BartConfig(width=1024, num_layers=12, num_decoder_layers=12, num_heads=16, mlp_dim=4096)
NANO = BartConfig(
    vocab_size=1000,
    width=128,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=4,
    mlp_dim=256,
    max_positions=192,
    kernel_init="fan_in",
)
VARIANTS = {"bart_base": BASE, "bart_large": LARGE, "nano": NANO}


class BartDecoderBlock(nn.Module):
    """x = norm(x + f(x)), with f: self-attention, cross-attention to the source, and a feed-forward layer.

    The body of a scan that carries (x, cache).
    """

    config: BartConfig
    dropout_rate: float
    """Dropout rate of attention weights and all branches; needs the "dropout" stream unless 0."""
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "B L D"], KVCache | None],
        layer: Int[Array, ""],
        source: tuple[Float[Array, "B S H K"], Float[Array, "B S H K"]],
        visible: Bool[Array, "B 1 L slots"],
        source_mask: Bool[Array, "B S"],
    ) -> tuple[tuple[Float[Array, "B L D"], KVCache | None], None]:
        """Applies one block; ``source`` is this layer's keys and values of the encoder's states."""
        config, rate, (x, cache) = self.config, self.dropout_rate, carry
        init = KERNEL_INITS[config.kernel_init]

        def make_key() -> Array | None:
            return self.make_rng("dropout") if rate > 0.0 else None

        def add(x: Array, y: Array, name: str) -> Array:
            return LayerNorm(self.dtype, LAYER_NORM_EPS, name=name)(x + dropout(y, rate, make_key()))

        attention = CausalAttention(config.num_heads, self.dtype, rate, init, name="attention")
        y, cache = attention(x, layer, cache, visible, make_key())
        x = add(x, y, "attention_norm")
        cross_attention = CrossAttention(
            config.num_heads,
            config.head_dim,
            self.dtype,
            dropout_rate=rate,
            kernel_init=init,
            query_init=init,
            name="cross_attention",
        )
        x = add(x, cross_attention(x, *source, source_mask, make_key()), "cross_norm")
        x = add(x, Mlp(config.mlp_dim, self.dtype, init, name="mlp")(x), "mlp_norm")
        return (x, cache), None


class BartStack(nn.Module):
    """Encoder, or with a source decoder: embeddings of tokens to states.

    Parameters: ``position_embed``, ``embed_norm``, ``blocks`` (every array with a leading axis of layers).
    """

    config: BartConfig
    dtype: jnp.dtype
    remat: Remat

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        mask: Bool[Array, "B L"],
        *,
        source: KVCache | None = None,
        cache: KVCache | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B L D"], KVCache | None]:
        """Returns the states of ``x`` and the ``cache`` with these tokens; ``source`` is `CrossKeyValue`'s."""
        config = self.config
        length = x.shape[1] if cache is None else cache.mask.shape[1]
        if length > config.max_positions:
            raise UserError(
                f"{length} tokens; this BART has positions for {config.max_positions}: shorten the text or the cache"
            )
        rate = config.dropout if train else 0.0
        positions = jnp.arange(x.shape[1])[None, :]
        if source is not None:
            cache, positions, visible = look_back(cache, mask)
        rows = config.max_positions + POSITION_OFFSET
        position_embed = Embed(rows, config.width, ("positions", "embed"), name="position_embed")
        x = x + position_embed(positions + POSITION_OFFSET).astype(self.dtype)
        x = LayerNorm(self.dtype, LAYER_NORM_EPS, name="embed_norm")(x)
        x = dropout(x, rate, self.make_rng("dropout") if rate else None)

        def repeat(block: type[nn.Module], num_layers: int, in_axes: object) -> type[nn.Module]:
            return nn.scan(
                rematerialise(block, self.remat),
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=in_axes,
                length=num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )

        if source is None:
            init = KERNEL_INITS[config.kernel_init]
            blocks = repeat(PostNormBlock, config.num_layers, nn.broadcast)(
                config.num_heads, config.mlp_dim, LAYER_NORM_EPS, rate, self.dtype, init, name="blocks"
            )
            return blocks(x, mask)[0], None
        blocks = repeat(BartDecoderBlock, config.num_decoder_layers, (0, 0, nn.broadcast, nn.broadcast))(
            config, rate, self.dtype, name="blocks"
        )
        layers = jnp.arange(config.num_decoder_layers)
        (x, cache), _ = blocks((x, cache), layers, (source.key, source.value), visible, source.mask)
        return x, cache


class Bart(nn.Module):
    """Module from a source and the text so far to logits, states, or each row's last state.

    Parameters: ``token_embed``, ``encoder`` and ``decoder`` (each ``position_embed``, ``embed_norm``, ``blocks``),
    ``cross_key_value``.
    """

    config: BartConfig
    dtype: jnp.dtype
    remat: Remat = "none"

    def setup(self) -> None:
        """Makes the embeddings, both stacks and the cross-attention's keys and values."""
        config = self.config
        self.token_embed = Embed(config.vocab_size, config.width, ("vocab", "embed"))
        self.encoder = BartStack(config, self.dtype, self.remat)
        self.cross_key_value = CrossKeyValue(
            config.num_decoder_layers,
            config.num_heads,
            config.head_dim,
            self.dtype,
            kernel_init=KERNEL_INITS[config.kernel_init],
        )
        self.decoder = BartStack(config, self.dtype, self.remat)

    def __call__(
        self,
        source_ids: Int[Array, "B S"],
        source_mask: Bool[Array, "B S"],
        ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"],
        *,
        output: Output = "logits",
        train: bool = False,
    ) -> Array:
        """Encodes the source and then decodes ``ids``, as in training: see `encode` and `decode`."""
        source = self.encode(source_ids, source_mask, train=train)
        read = self.decode(ids, mask, source=source, source_mask=source_mask, output=output, train=train)
        assert not isinstance(read, tuple)
        return read

    def encode(
        self,
        ids: Int[Array, "B S"],
        mask: Bool[Array, "B S"],
        *,
        embeds: Float[Array, "B S D"] | None = None,
        embeds_mask: Bool[Array, "B S"] | None = None,
        train: bool = False,
    ) -> Float[Array, "B S D"]:
        """Returns the encoder's states; ``mask`` is True for real tokens, which are padded on the right.

        ``embeds``, for example vectors of audio, replace the embeddings of tokens where ``embeds_mask`` is True;
        everywhere without a mask.
        """
        x = insert(self.token_embed(ids).astype(self.dtype), embeds, embeds_mask)
        return self.encoder(x, mask, train=train)[0]

    def decode(
        self,
        ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"],
        *,
        source: Float[Array, "B S D"] | None = None,
        source_mask: Bool[Array, "B S"] | None = None,
        cache: KVCache | Seq2SeqCache | None = None,
        output: Output = "logits",
        train: bool = False,
    ) -> Array | tuple[Array, Seq2SeqCache]:
        """Reads ``ids``, after those that ``cache`` has read, attending to the source.

        Args:
            ids: tokens, of which the first is ``start_id``, as published.
            mask: True for real tokens; positions count them.
            source: states of `encode`; give it with the prompt and leave it out afterwards.
            source_mask: True where they are real; None for everywhere.
            cache: for a prompt an empty one, of ``make_cache(config.cache_shape, ...)``; then the cache returned by
                the last call, which holds the source.
            output: see `alm_jax.nn.language_model.Output`.

        Returns:
            The output; with a ``cache``, the pair of the output and the cache that now also holds these tokens and
            the source.

        Raises:
            UserError: neither a source nor a cache that holds one is given, or both are; or the text is too long.
        """
        check_source(source, cache)
        text = cache.text if isinstance(cache, Seq2SeqCache) else cache
        if isinstance(cache, Seq2SeqCache):
            read = cache.source
        else:
            assert source is not None
            if source_mask is None:
                source_mask = jnp.ones(source.shape[:2], bool)
            read = self.cross_key_value(source, source_mask)
        x, text = self.decoder(
            self.token_embed(ids).astype(self.dtype), mask, source=read, cache=text, train=train
        )
        if output in ("last", "next"):
            x = take_rows(x, find_last(mask))
        if output in ("logits", "next"):
            x = project(x, self.token_embed.embedding, tied=True)
        return x if text is None else (x, Seq2SeqCache(text, read))


def _example(config: BartConfig) -> tuple[jax.ShapeDtypeStruct, ...]:
    return (jax.ShapeDtypeStruct((2, 4), jnp.int32), jax.ShapeDtypeStruct((2, 4), jnp.bool_)) * 2


FAMILY = Family(
    name="bart",
    kind="language model",
    config_type=BartConfig,
    build=Bart,
    variants=VARIANTS,
    example=_example,
    takes=frozenset({"train"}),
    source="https://arxiv.org/abs/1910.13461",
)
