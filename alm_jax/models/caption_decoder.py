"""CoCa's text decoder: its first half reads only text, its second half attends to the audio too.

Yu et al. 2022, https://arxiv.org/abs/2205.01917, section 3.2. Token ids and a class token behind them -> embeddings
+ learned positions -> causal blocks -> the class token's state is the text's vector; and on from there, causal blocks
with attention to the audio -> norm -> the table of embeddings as head. Both losses so cost one pass.
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
from alm_jax.nn.kv_cache import CacheShape, KVCache
from alm_jax.nn.language_model import Output, find_last, project, take_rows
from alm_jax.nn.mlp import Mlp
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import KERNEL_INITS, declare, truncated_normal
from alm_jax.nn.rematerialise import Remat, rematerialise


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionDecoderConfig:
    """Shape of a text decoder in two halves. Defaults are those of CoCa-Base."""

    vocab_size: int = 64000
    """Vocabulary size: entries of the tokenizer."""
    width: int = 768
    """Width: size of a token's hidden state."""
    num_unimodal_layers: int = 12
    """Number of blocks that attend only to text."""
    num_multimodal_layers: int = 12
    """Number of blocks that also attend to the audio."""
    num_heads: int = 12
    """Attention heads; divides the width."""
    mlp_dim: int = 3072
    """Hidden size of the feed-forward layers."""
    max_positions: int = 65
    """Rows of the position table: the maximum tokens of a text, plus one for the class token."""
    layer_norm_eps: float = 1e-5
    """Epsilon of LayerNorm."""
    kernel_init: Literal["normal", "fan_in"] = "normal"
    """Initialisation of kernels: N(0, 0.02^2), or N(0, 1 / fan-in), with which a narrow model learns faster."""

    tied_head: ClassVar[bool] = True
    """The output head is the table of embeddings."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise UserError(
                f"text width {self.width} is not a multiple of num_heads {self.num_heads}; change one of them"
            )
        if min(self.num_unimodal_layers, self.num_multimodal_layers) < 1:
            raise UserError(
                f"the decoder has {self.num_unimodal_layers} blocks for text and {self.num_multimodal_layers} for text "
                "and audio; it takes at least one of each"
            )

    @property
    def head_dim(self) -> int:
        """Size of a head."""
        return self.width // self.num_heads

    @property
    def cache_shape(self) -> CacheShape:
        """For `alm_jax.nn.kv_cache.make_cache`: the blocks of both halves, in order."""
        layers = self.num_unimodal_layers + self.num_multimodal_layers
        return CacheShape(layers, self.num_heads, self.head_dim)


BASE = CaptionDecoderConfig()
NANO = CaptionDecoderConfig(
    vocab_size=1000,
    width=128,
    num_unimodal_layers=2,
    num_multimodal_layers=2,
    num_heads=4,
    mlp_dim=512,
    max_positions=64,
    kernel_init="fan_in",
)
VARIANTS = {"base": BASE, "nano": NANO}


class CaptionBlock(nn.Module):
    """x += attention(norm(x)); with a source x += attention to it(norm(x)); x += mlp(norm(x)).

    The body of a scan that carries (x, cache).
    """

    config: CaptionDecoderConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "B L D"], KVCache | None],
        layer: Int[Array, ""],
        source: tuple[Float[Array, "B S H K"], Float[Array, "B S H K"]] | None,
        visible: Bool[Array, "B 1 L slots"],
        source_mask: Bool[Array, "B S"] | None,
    ) -> tuple[tuple[Float[Array, "B L D"], KVCache | None], None]:
        """``layer`` is this one's number in the cache, ``source`` its keys and values of the audio."""
        config, (x, cache) = self.config, carry
        init = KERNEL_INITS[config.kernel_init]

        def normalise(x: Array, name: str) -> Array:
            return LayerNorm(self.dtype, config.layer_norm_eps, name=name)(x)

        attention = CausalAttention(config.num_heads, self.dtype, kernel_init=init, name="attention")
        y, cache = attention(normalise(x, "attention_norm"), layer, cache, visible)
        x = x + y
        if source is not None:
            assert source_mask is not None
            cross_attention = CrossAttention(
                config.num_heads,
                config.head_dim,
                self.dtype,
                kernel_init=init,
                query_init=init,
                name="cross_attention",
            )
            x = x + cross_attention(normalise(x, "cross_norm"), *source, source_mask)
        y = Mlp(config.mlp_dim, self.dtype, init, name="mlp")(normalise(x, "mlp_norm"))
        return (x + y, cache), None


class CaptionDecoder(nn.Module):
    """A text, and audio that it may be of, to states, to a vector of the text, or to logits.

    Parameters: ``token_embed``, ``class_embed``, ``position_embed``, ``unimodal`` and ``multimodal`` (blocks, every
    array with a leading axis of layers), ``text_norm``, ``cross_key_value``, ``norm``.
    """

    config: CaptionDecoderConfig
    dtype: jnp.dtype
    remat: Remat = "none"

    def setup(self) -> None:
        """Embeddings, both halves and what joins them."""
        config = self.config
        self.token_embed = Embed(config.vocab_size, config.width, ("vocab", "embed"))
        self.position_embed = Embed(config.max_positions, config.width, ("positions", "embed"))
        self.class_embed = declare(self, "class_embed", truncated_normal, (config.width,), ("embed",))

        def repeat(num_layers: int, source_axis: object) -> nn.Module:
            blocks = nn.scan(
                rematerialise(CaptionBlock, self.remat),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, source_axis, nn.broadcast, nn.broadcast),
                length=num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            return blocks(config, self.dtype)

        self.unimodal = repeat(config.num_unimodal_layers, nn.broadcast)
        self.multimodal = repeat(config.num_multimodal_layers, 0)
        self.text_norm = LayerNorm(self.dtype, config.layer_norm_eps)
        self.norm = LayerNorm(self.dtype, config.layer_norm_eps)
        self.cross_key_value = CrossKeyValue(
            config.num_multimodal_layers,
            config.num_heads,
            config.head_dim,
            self.dtype,
            kernel_init=KERNEL_INITS[config.kernel_init],
        )

    def __call__(
        self,
        audio: Float[Array, "B S D"],
        ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"],
    ) -> Float[Array, "B L V"]:
        """Logits of every token's successor: `read`, then `ground`, then the head."""
        states = self.read(ids, mask)
        self.summarise(states)
        return project(self.ground(states, mask, audio)[:, :-1], self.token_embed.embedding, tied=True)

    def read(self, ids: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, "B tokens D"]:
        """The first half's states of the L tokens, and of the class token, which stands last and has seen them all.

        ``mask`` is True for real tokens; what lies under padding has no influence. The class token has the position
        that comes after the real ones.
        """
        self._check_length(ids.shape[1] + 1)
        x = self.token_embed(ids)
        last = jnp.broadcast_to(self.class_embed[None, None], (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([x, last], axis=1)
        _, positions, visible = look_back(None, with_class_token(mask))
        x = (x + self.position_embed(positions)).astype(self.dtype)
        return self._read_blocks(x, None, visible)[0]

    def summarise(self, states: Float[Array, "B tokens D"]) -> Float[Array, "B D"]:
        """The text's vector, of `read`'s states: the class token's, normalised."""
        return self.text_norm(states[:, -1])

    def ground(
        self,
        states: Float[Array, "B tokens D"],
        mask: Bool[Array, "B L"],
        audio: Float[Array, "B S D"],
    ) -> Float[Array, "B tokens D"]:
        """The second half's states, normalised: `read`'s, with the S vectors of the audio before their eyes.

        That of a token predicts the next one; that of the class token has seen text and audio whole.
        """
        _, _, visible = look_back(None, with_class_token(mask))
        source = self.cross_key_value(audio, jnp.ones(audio.shape[:2], bool))
        return self.norm(self._ground_blocks(states, None, visible, source)[0])

    def decode(
        self,
        ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"],
        *,
        source: Float[Array, "B S D"] | None = None,
        cache: KVCache | Seq2SeqCache | None = None,
        output: Output = "logits",
    ) -> Array | tuple[Array, Seq2SeqCache]:
        """Writes on from ``ids``, after those that ``cache`` has read: both halves, without the class token.

        Args:
            ids: tokens, the first of which is the one that texts begin with in training.
            mask: True for real tokens; positions count them.
            source: the vectors of the audio; with the prompt, and not with what follows.
            cache: for a prompt an empty one, of ``make_cache(config.cache_shape, ...)``; then what came back.
            output: see `alm_jax.nn.language_model.Output`.

        Returns:
            The output, and with a ``cache`` the pair of it and the cache that holds these tokens and the audio too.

        Raises:
            UserError: there is neither a source nor a cache that knows one, or both; or the text is too long.
        """
        check_source(source, cache)
        text = cache.text if isinstance(cache, Seq2SeqCache) else cache
        if isinstance(cache, Seq2SeqCache):
            encoded = cache.source
        else:
            assert source is not None
            encoded = self.cross_key_value(source, jnp.ones(source.shape[:2], bool))
        self._check_length(ids.shape[1] if text is None else text.mask.shape[1])
        text, positions, visible = look_back(text, mask)
        x = (self.token_embed(ids) + self.position_embed(positions)).astype(self.dtype)
        x, text = self._read_blocks(x, text, visible)
        x, text = self._ground_blocks(x, text, visible, encoded)
        x = self.norm(x)
        if output in ("last", "next"):
            x = take_rows(x, find_last(mask))
        if output in ("logits", "next"):
            x = project(x, self.token_embed.embedding, tied=True)
        return x if text is None else (x, Seq2SeqCache(text, encoded))

    def _read_blocks(
        self, x: Float[Array, "B L D"], cache: KVCache | None, visible: Bool[Array, "B 1 L slots"]
    ) -> tuple[Float[Array, "B L D"], KVCache | None]:
        layers = jnp.arange(self.config.num_unimodal_layers)
        return self.unimodal((x, cache), layers, None, visible, None)[0]

    def _ground_blocks(
        self,
        x: Float[Array, "B L D"],
        cache: KVCache | None,
        visible: Bool[Array, "B 1 L slots"],
        source: KVCache,
    ) -> tuple[Float[Array, "B L D"], KVCache | None]:
        layers = self.config.num_unimodal_layers + jnp.arange(self.config.num_multimodal_layers)
        return self.multimodal((x, cache), layers, (source.key, source.value), visible, source.mask)[0]

    def _check_length(self, length: int) -> None:
        if length > self.config.max_positions:
            raise UserError(
                f"{length} tokens, the class token among them; this decoder has positions for "
                f"{self.config.max_positions}: raise text.max_positions or shorten the text"
            )


def with_class_token(mask: Bool[Array, "B L"]) -> Bool[Array, "B tokens"]:
    """The mask of a text's tokens and the class token behind them."""
    return jnp.pad(mask, ((0, 0), (0, 1)), constant_values=True)


def _example(config: CaptionDecoderConfig) -> tuple[jax.ShapeDtypeStruct, ...]:
    return (
        jax.ShapeDtypeStruct((2, 3, config.width), jnp.float32),
        jax.ShapeDtypeStruct((2, 4), jnp.int32),
        jax.ShapeDtypeStruct((2, 4), jnp.bool_),
    )


FAMILY = Family(
    name="caption_decoder",
    kind="language model",
    config_type=CaptionDecoderConfig,
    build=CaptionDecoder,
    variants=VARIANTS,
    example=_example,
    source="https://arxiv.org/abs/2205.01917",
)
