"""Whisper complete: its encoder, and the decoder that transcribes.

Radford et al. 2022, https://arxiv.org/abs/2212.04356. Token ids -> embeddings + learned positions -> blocks of causal
self-attention, attention to the encoder's states and a feed-forward half -> norm -> the table of embeddings as head.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.encoders.audio.whisper import (
    BASE,
    LARGE,
    LARGE_V3,
    MEDIUM,
    NANO,
    SMALL,
    TINY,
    WhisperEncoder,
    WhisperEncoderConfig,
    compute_token_mask,
)
from alm_jax.encoders.family import Family
from alm_jax.errors import UserError
from alm_jax.nn.causal_attention import look_back
from alm_jax.nn.dense import Embed
from alm_jax.nn.kv_cache import CacheShape, KVCache
from alm_jax.nn.language_model import Output, find_last, project, take_rows
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import declare, truncated_normal
from alm_jax.nn.rematerialise import Remat, rematerialise
from alm_jax.nn.whisper import LAYER_NORM_EPS, WhisperDecoderBlock
from alm_jax.ops.frontends import ClipSpec, WhisperSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhisperConfig:
    """Shape of a Whisper. The decoder has the encoder's width, heads and feed-forward size, as published."""

    encoder: WhisperEncoderConfig = TINY
    """The audio encoder; its pool_size must be 1."""
    vocab_size: int = 51865
    """Vocabulary size: 51865; 51864 in the English models, 51866 in large-v3."""
    num_layers: int = 4
    """Blocks of the decoder."""
    max_text_positions: int = 448
    """Maximum tokens of a text."""
    tied_head: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.encoder.pool_size != 1:
            raise UserError(
                f"Whisper's encoder does not pool; pool_size is {self.encoder.pool_size}: set it to 1"
            )

    @property
    def cache_shape(self) -> CacheShape:
        """Sizes of the key-value cache, for `alm_jax.nn.kv_cache.make_cache`."""
        width, num_heads = self.encoder.width, self.encoder.num_heads
        return CacheShape(self.num_layers, num_heads, width // num_heads)


VARIANTS = {
    "tiny": WhisperConfig(),
    "base": WhisperConfig(encoder=BASE, num_layers=6),
    "small": WhisperConfig(encoder=SMALL, num_layers=12),
    "medium": WhisperConfig(encoder=MEDIUM, num_layers=24),
    "large_v2": WhisperConfig(encoder=LARGE, num_layers=32),
    "large_v3": WhisperConfig(encoder=LARGE_V3, num_layers=32, vocab_size=51866),
    "large_v3_turbo": WhisperConfig(encoder=LARGE_V3, num_layers=4, vocab_size=51866),
    "nano": WhisperConfig(encoder=NANO, num_layers=2, vocab_size=500, max_text_positions=64),
}


class WhisperCache(NamedTuple):
    """Cache of the decoder: keys and values of the text so far, and of the audio, which do not change."""

    text: KVCache
    audio_key: Float[Array, "layers B N H K"]
    audio_value: Float[Array, "layers B N H K"]
    audio_mask: Bool[Array, "B N"] | None


class WhisperDecoder(nn.Module):
    """Module from token ids and the audio's states to logits, states, or each row's last state.

    Parameters: ``token_embed``, ``position_embed``, ``blocks`` (every array with a leading axis of layers), ``norm``.
    """

    config: WhisperConfig
    dtype: jnp.dtype
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self,
        ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"],
        audio: Float[Array, "B N D"] | None,
        audio_mask: Bool[Array, "B N"] | None,
        cache: KVCache | WhisperCache | None,
        output: Output,
    ) -> Array | tuple[Array, WhisperCache]:
        """Decodes tokens: see `Whisper.decode`."""
        config = self.config
        if (audio is None) != isinstance(cache, WhisperCache):
            raise UserError(
                "the decoder takes either the encoder's states or a WhisperCache: give audio with the prompt, "
                "and then the cache that came back, alone"
            )
        text_cache: KVCache | None
        states: Any = audio
        if isinstance(cache, WhisperCache):
            text_cache, audio_mask = cache.text, cache.audio_mask
            states = (cache.audio_key, cache.audio_value)
        else:
            text_cache = cache
        num_tokens = ids.shape[1] if text_cache is None else text_cache.mask.shape[1]
        if num_tokens > config.max_text_positions:
            raise UserError(
                f"{num_tokens} tokens or slots of a cache; this decoder has positions for {config.max_text_positions}: "
                "shorten the text"
            )
        text_cache, places, visible = look_back(text_cache, mask)

        width = config.encoder.width
        embed = Embed(config.vocab_size, width, ("vocab", "embed"), name="token_embed")
        shape = (config.max_text_positions, width)
        positions = declare(self, "position_embed", truncated_normal, shape, ("positions", "embed"))
        x = (embed(ids) + jnp.take(positions, places, axis=0, mode="clip")).astype(self.dtype)

        block = rematerialise(WhisperDecoderBlock, self.remat)
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast if audio is not None else 0, nn.broadcast, nn.broadcast),
            length=config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        decoder = blocks(config.encoder.num_heads, config.encoder.mlp_dim, self.dtype, name="blocks")
        (x, text_cache), kept = decoder(
            (x, text_cache), jnp.arange(config.num_layers), states, visible, audio_mask
        )
        x = LayerNorm(self.dtype, LAYER_NORM_EPS, name="norm")(x)
        if output in ("last", "next"):
            x = take_rows(x, find_last(mask))
        if output in ("logits", "next"):
            x = project(x, embed.embedding, tied=True)
        if text_cache is None:
            return x
        assert kept is not None
        return x, WhisperCache(text_cache, *kept, audio_mask)


class Whisper(nn.Module):
    """Module from log-mel features and the tokens so far to logits, states, or each row's last state.

    Parameters: ``encoder``, `WhisperEncoder`'s, and ``decoder``, `WhisperDecoder`'s.
    """

    config: WhisperConfig
    dtype: jnp.dtype
    remat: Remat = "none"

    def setup(self) -> None:
        """Makes encoder and decoder."""
        self.encoder = WhisperEncoder(self.config.encoder, self.dtype, remat=self.remat)
        self.decoder = WhisperDecoder(self.config, self.dtype, self.remat)

    def __call__(
        self,
        features: Float[Array, "B T F"],
        ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"],
        *,
        features_mask: Bool[Array, "B T"] | None = None,
        output: Output = "logits",
    ) -> Array:
        """Encodes ``features`` and then decodes ``ids``, as in training: see `encode` and `decode`."""
        audio = self.encode(features, features_mask)
        audio_mask = None if features_mask is None else compute_token_mask(self.config.encoder, features_mask)
        read = self.decode(ids, mask, audio=audio, audio_mask=audio_mask, output=output)
        assert not isinstance(read, tuple)
        return read

    def encode(
        self, features: Float[Array, "B T F"], mask: Bool[Array, "B T"] | None = None
    ) -> Float[Array, "B N D"]:
        """Returns the encoder's states; ``mask`` is True for real frames."""
        return self.encoder(features, mask=mask)

    def decode(
        self,
        ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"],
        *,
        audio: Float[Array, "B N D"] | None = None,
        audio_mask: Bool[Array, "B N"] | None = None,
        cache: KVCache | WhisperCache | None = None,
        output: Output = "logits",
    ) -> Array | tuple[Array, WhisperCache]:
        """Reads ``ids``, after those that ``cache`` has read, attending to the audio.

        Args:
            mask: True for real tokens; positions count them.
            audio: states of `encode`; give it with the prompt and leave it out afterwards.
            audio_mask: True where they are of real audio; None for everywhere.
            cache: for a prompt an empty one, of ``make_cache(config.cache_shape, ...)``; then the cache returned by
                the last call, which holds the audio.
            output: see `alm_jax.nn.language_model.Output`.

        Returns:
            The output; with a ``cache``, the pair of the output and the cache that now also holds these tokens and
            the audio.

        Raises:
            UserError: neither audio nor a cache that holds it is given, or both are; or the text is too long.
        """
        return self.decoder(ids, mask, audio, audio_mask, cache, output)


FAMILY = Family(
    name="whisper",
    kind="language model",
    config_type=WhisperConfig,
    build=lambda config, dtype, remat: Whisper(config, dtype, remat),
    variants=VARIANTS,
    example=lambda config: (
        jax.ShapeDtypeStruct((2, 4, config.encoder.num_mels), jnp.float32),
        jax.ShapeDtypeStruct((2, 4), jnp.int32),
        jax.ShapeDtypeStruct((2, 4), jnp.bool_),
    ),
    frontend=WhisperSpec(clip=ClipSpec(clip_sec=30.0, pad="zero")),
    source="https://arxiv.org/abs/2212.04356",
)
