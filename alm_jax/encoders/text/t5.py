"""T5, T5 v1.1 and Flan-T5: the encoder alone, and the encoder with its decoder.

Raffel et al. 2020 (https://arxiv.org/abs/1910.10683), Chung et al. 2022 (https://arxiv.org/abs/2210.11416). Pre-norm
blocks of RMSNorm and matrices without biases, attention without 1 / sqrt(K), and positions as a bias of the scores
from one table for all layers. v1.1 and Flan have gated feed-forward layers and an untied head. Parameters are
initialised as in the published code.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.encoders.family import Family, TextTowerConfig
from alm_jax.errors import UserError
from alm_jax.nn.causal_attention import look_back
from alm_jax.nn.cross_attention import CrossAttention, CrossKeyValue, Seq2SeqCache, check_source
from alm_jax.nn.dense import Embed
from alm_jax.nn.dropout import dropout
from alm_jax.nn.gated_mlp import GatedMlp
from alm_jax.nn.kv_cache import CacheShape, KVCache, count_positions
from alm_jax.nn.language_model import Head, Output, find_last, insert, project, take_rows
from alm_jax.nn.mlp import Mlp, gelu_tanh
from alm_jax.nn.pooling import masked_mean
from alm_jax.nn.relative_attention import FAN_IN, RelativeAttention, query_init
from alm_jax.nn.relative_bias import RelativeBias
from alm_jax.nn.rematerialise import Remat, rematerialise
from alm_jax.nn.rms_norm import RmsNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5EncoderConfig(TextTowerConfig):
    """Shape of T5's encoder. Defaults are those of T5-small."""

    vocab_size: int = 32128
    """Vocabulary size: entries of the tokenizer, rounded up."""
    width: int = 512
    """Width: size of a token's hidden state."""
    num_layers: int = 6
    """Blocks of the encoder."""
    num_heads: int = 8
    """Attention heads."""
    head_dim: int = 64
    """Size of a head; num_heads times head size may differ from the width."""
    mlp_dim: int = 2048
    """Hidden size of the feed-forward layers."""
    mlp: Literal["relu", "gated_gelu"] = "relu"
    """Feed-forward layers: those of the first T5, or the gated ones of v1.1 and Flan."""
    num_buckets: int = 32
    """Buckets of distances between two tokens; even."""
    max_distance: int = 128
    """Distance in tokens from which all distances share a bucket."""
    rms_norm_eps: float = 1e-6
    """Epsilon of RMSNorm, added to the mean square."""
    dropout: float = 0.1
    """Dropout rate of embeddings, attention weights, residual branches and last states in training."""
    pad_id: int = 0
    """Id of the padding token, also the decoder's first token."""

    def __post_init__(self) -> None:
        if self.num_buckets % 2 or self.max_distance <= self.num_buckets // 2:
            raise UserError(
                f"num_buckets {self.num_buckets} must be even and its half less than max_distance "
                f"{self.max_distance}; change one of them"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config(T5EncoderConfig):
    """Shape of a T5 with its decoder. Defaults are those of T5-small."""

    num_decoder_layers: int = 6
    """Blocks of the decoder."""
    tied_head: bool = True
    """Whether the output head is the table of embeddings, as in the first T5. False, as in v1.1 and Flan: the head
    has its own matrix."""
    has_scaled_states: bool | None = None
    """Whether states are divided by sqrt(width) before the head. None: where the head is tied, as in every published
    model. transformers 5 also makes models with only one of the two."""

    @property
    def scales_states(self) -> bool:
        """`has_scaled_states` with None resolved."""
        return self.tied_head if self.has_scaled_states is None else self.has_scaled_states

    @property
    def cache_shape(self) -> CacheShape:
        """Sizes of the key-value cache, for `alm_jax.nn.kv_cache.make_cache`."""
        return CacheShape(self.num_decoder_layers, self.num_heads, self.head_dim)


SMALL = T5Config()
BASE = T5Config(width=768, num_layers=12, num_decoder_layers=12, num_heads=12, mlp_dim=3072)
LARGE = T5Config(width=1024, num_layers=24, num_decoder_layers=24, num_heads=16, mlp_dim=4096)
FLAN_BASE = dataclasses.replace(BASE, mlp_dim=2048, mlp="gated_gelu", tied_head=False)
FLAN_LARGE = dataclasses.replace(LARGE, mlp_dim=2816, mlp="gated_gelu", tied_head=False)
NANO = T5Config(
    vocab_size=1000,
    width=128,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=4,
    head_dim=16,
    mlp_dim=256,
    mlp="gated_gelu",
    tied_head=False,
)
VARIANTS = {
    "t5_small": SMALL,
    "t5_base": BASE,
    "t5_large": LARGE,
    "flan_t5_base": FLAN_BASE,
    "flan_t5_large": FLAN_LARGE,
    "nano": NANO,
}


def encoder_config(config: T5Config) -> T5EncoderConfig:
    """Makes the encoder of ``config`` alone; its parameters are ``token_embed`` and ``encoder`` of the whole
    model."""
    names = [field.name for field in dataclasses.fields(T5EncoderConfig)]
    return T5EncoderConfig(**{name: getattr(config, name) for name in names})


ENCODER_VARIANTS = {name: encoder_config(config) for name, config in VARIANTS.items()}


class T5Block(nn.Module):
    """x = x + attention(norm(x)); in a decoder x = x + cross_attention(norm(x)); x = x + mlp(norm(x)).

    The body of a scan that carries (x, cache).
    """

    config: T5EncoderConfig
    dtype: jnp.dtype
    dropout_rate: float
    """Dropout rate; needs the "dropout" stream unless 0."""

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "B L D"], KVCache | None],
        layer: Int[Array, ""],
        source: tuple[Float[Array, "B S H K"], Float[Array, "B S H K"]] | None,
        visible: Bool[Array, "..."],
        bias: Float[Array, "..."],
        source_mask: Bool[Array, "B S"] | None,
    ) -> tuple[tuple[Float[Array, "B L D"], KVCache | None], None]:
        """Applies one block; ``source`` is this layer's keys and values of the encoder's states, in a decoder."""
        config, (x, cache), rate = self.config, carry, self.dropout_rate

        def make_key() -> Array | None:
            return self.make_rng("dropout") if rate > 0.0 else None

        def norm(name: str) -> Array:
            return RmsNorm(self.dtype, config.rms_norm_eps, name=name)(x)

        attention = RelativeAttention(config.num_heads, config.head_dim, self.dtype, rate, name="attention")
        y, cache = attention(norm("attention_norm"), layer, cache, visible, bias, make_key())
        x = x + dropout(y, rate, make_key())
        if source is not None and source_mask is not None:
            cross_attention = CrossAttention(
                config.num_heads,
                config.head_dim,
                self.dtype,
                use_bias=False,
                scale=1.0,
                dropout_rate=rate,
                kernel_init=FAN_IN,
                query_init=query_init(config.head_dim),
                name="cross_attention",
            )
            y = cross_attention(norm("cross_norm"), *source, source_mask, make_key())
            x = x + dropout(y, rate, make_key())
        if config.mlp == "gated_gelu":
            mlp: Callable[[Array], Array] = GatedMlp(
                config.mlp_dim, self.dtype, gelu_tanh, kernel_init=FAN_IN, name="mlp"
            )
        else:
            mlp = Mlp(config.mlp_dim, self.dtype, FAN_IN, nn.relu, use_bias=False, name="mlp")
        return (x + dropout(mlp(norm("mlp_norm")), rate, make_key()), cache), None


class T5Stack(nn.Module):
    """Stack of blocks of an encoder or a decoder with its table of positions: embeddings to normalised states.

    Parameters: ``relative_bias``, ``blocks`` (every array with a leading axis of layers), ``norm``.
    """

    config: T5EncoderConfig
    num_layers: int
    is_decoder: bool
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
        rate = config.dropout if train else 0.0

        def make_key() -> Array | None:
            return self.make_rng("dropout") if rate else None

        # Only distances matter, so all rows share positions until there is a cache.
        positions = key_positions = jnp.arange(x.shape[1])[None, :]
        visible = mask[:, None, None, :]
        if self.is_decoder:
            cache, places, visible = look_back(cache, mask)
            if cache is not None:
                positions, key_positions = places, count_positions(cache.mask)
        bias = RelativeBias(
            config.num_heads,
            config.num_buckets,
            config.max_distance,
            is_bidirectional=not self.is_decoder,
            embedding_init=nn.initializers.normal(config.width**-0.5),
            name="relative_bias",
        )(positions, key_positions)

        block = rematerialise(T5Block, self.remat)
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, 0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=self.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        (x, cache), _ = blocks(config, self.dtype, rate, name="blocks")(
            (dropout(x, rate, make_key()), cache),
            jnp.arange(self.num_layers),
            None if source is None else (source.key, source.value),
            visible,
            bias,
            None if source is None else source.mask,
        )
        x = RmsNorm(self.dtype, config.rms_norm_eps, name="norm")(x)
        return dropout(x, rate, make_key()), cache


def _token_embed(config: T5EncoderConfig) -> Embed:
    return Embed(config.vocab_size, config.width, ("vocab", "embed"), nn.initializers.normal(1.0))


class T5Encoder(nn.Module):
    """Module from token ids and their mask to one vector a text, or to the states of the tokens.

    Parameters: ``token_embed`` and ``encoder`` (``relative_bias``, ``blocks``, ``norm``).
    """

    config: T5EncoderConfig
    dtype: jnp.dtype
    remat: Remat = "none"

    def setup(self) -> None:
        """Makes the embeddings and the blocks."""
        self.token_embed = _token_embed(self.config)
        self.encoder = T5Stack(self.config, self.config.num_layers, False, self.dtype, self.remat)

    def __call__(
        self,
        ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"],
        *,
        output: Literal["mean", "states"] = "mean",
        train: bool = False,
    ) -> Float[Array, "B D"] | Float[Array, "B L D"]:
        """Returns the mean over the real tokens [B D], or every token's state [B L D]; both in ``dtype``."""
        states, _ = self.encoder(self.token_embed(ids).astype(self.dtype), mask, train=train)
        return masked_mean(states, mask) if output == "mean" else states


class T5(nn.Module):
    """Module from a source and the text so far to logits, states, or each row's last state.

    Parameters: ``token_embed``, ``encoder`` and ``decoder`` (each ``relative_bias``, ``blocks``, ``norm``),
    ``cross_key_value``, and ``head`` unless the config ties it.
    """

    config: T5Config
    dtype: jnp.dtype
    remat: Remat = "none"

    def setup(self) -> None:
        """Makes the embeddings, both stacks and the cross-attention's keys and values."""
        config = self.config
        self.token_embed = _token_embed(config)
        self.encoder = T5Stack(config, config.num_layers, False, self.dtype, self.remat)
        self.cross_key_value = CrossKeyValue(
            config.num_decoder_layers,
            config.num_heads,
            config.head_dim,
            self.dtype,
            use_bias=False,
            kernel_init=FAN_IN,
        )
        self.decoder = T5Stack(config, config.num_decoder_layers, True, self.dtype, self.remat)
        if not config.tied_head:
            self.head = Head(config.vocab_size)

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
        """Returns the encoder's states; ``mask`` is True for real tokens.

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
            ids: tokens, of which the first is the padding token, as published.
            mask: True for real tokens (that first one is real).
            source: states of `encode`, or of anything else of this width; give it with the prompt and leave it out
                afterwards.
            source_mask: True where they are real; None for everywhere.
            cache: for a prompt an empty one, of ``make_cache(config.cache_shape, ...)``; then the cache returned by
                the last call, which holds the source.
            output: see `alm_jax.nn.language_model.Output`. Where the head is tied, states are those that it takes:
                divided by sqrt(width).

        Returns:
            The output; with a ``cache``, the pair of the output and the cache that now also holds these tokens and
            the source.

        Raises:
            UserError: neither a source nor a cache that holds one is given, or both are.
        """
        config = self.config
        check_source(source, cache)
        text = cache.text if isinstance(cache, Seq2SeqCache) else cache
        if isinstance(cache, Seq2SeqCache):
            read = cache.source
        else:
            assert source is not None
            if source_mask is None:
                source_mask = jnp.ones(source.shape[:2], bool)
            read = self.cross_key_value(source, source_mask)
        x = self.token_embed(ids).astype(self.dtype)
        x, text = self.decoder(x, mask, source=read, cache=text, train=train)
        if config.scales_states:
            x = x * config.width**-0.5
        if output in ("last", "next"):
            x = take_rows(x, find_last(mask))
        if output in ("logits", "next"):
            x = project(x, self.token_embed.embedding, tied=True) if config.tied_head else self.head(x)
        return x if text is None else (x, Seq2SeqCache(text, read))


def _texts(count: int) -> Callable[[Any], tuple[jax.ShapeDtypeStruct, ...]]:
    pair = jax.ShapeDtypeStruct((2, 4), jnp.int32), jax.ShapeDtypeStruct((2, 4), jnp.bool_)
    return lambda config: pair * count


ENCODER_FAMILY = Family(
    name="t5_encoder",
    kind="text encoder",
    config_type=T5EncoderConfig,
    build=T5Encoder,
    variants=ENCODER_VARIANTS,
    example=_texts(1),
    takes=frozenset({"train"}),
    source="https://arxiv.org/abs/1910.10683, https://arxiv.org/abs/2210.11416",
)
FAMILY = Family(
    name="t5",
    kind="language model",
    config_type=T5Config,
    build=T5,
    variants=VARIANTS,
    example=_texts(2),
    takes=frozenset({"train"}),
    source="https://arxiv.org/abs/1910.10683, https://arxiv.org/abs/2210.11416",
)
