"""Qwen2-Audio: Whisper's encoder, pooled to 25 states a second, a linear layer, and Qwen2, which reads them as tokens.

Chu et al. 2024 (https://arxiv.org/abs/2407.10759). A text names its recordings by `<|AUDIO|>`; `expand_audio_tokens`
makes as many of each as the recording has states, and the model puts the states in their places.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from alm_jax.encoders.audio import whisper
from alm_jax.encoders.audio.whisper import WhisperEncoder, WhisperEncoderConfig, compute_token_mask
from alm_jax.encoders.family import Family
from alm_jax.encoders.text.llama import QWEN2_NANO, Llama, Qwen2Config
from alm_jax.errors import DataError, UserError
from alm_jax.nn.dense import Dense
from alm_jax.nn.kv_cache import CacheShape, KVCache
from alm_jax.nn.language_model import Output
from alm_jax.nn.rematerialise import Remat
from alm_jax.ops.frontends import ClipSpec, WhisperSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2AudioConfig:
    """Shape of a Qwen2-Audio. Defaults are those of the released 7B models."""

    encoder: WhisperEncoderConfig = whisper.VARIANTS["qwen2_audio"]
    """The encoder, which pools two states into one."""
    language_model: Qwen2Config = Qwen2Config(
        vocab_size=156032,
        width=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        mlp_dim=11008,
        max_positions=8192,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
    )
    """The decoder."""
    audio_token_id: int = 151646
    """Id of `<|AUDIO|>`."""

    def __post_init__(self) -> None:
        if not 0 <= self.audio_token_id < self.language_model.vocab_size:
            raise UserError(
                f"audio_token_id {self.audio_token_id} is not in the vocabulary of {self.language_model.vocab_size}"
            )

    @property
    def tied_head(self) -> bool:
        """Whether logits come of the decoder's table of embeddings."""
        return self.language_model.tied_head

    @property
    def cache_shape(self) -> CacheShape:
        """Sizes of the key-value cache, for `alm_jax.nn.kv_cache.make_cache`."""
        return self.language_model.cache_shape


BASE = Qwen2AudioConfig()
NANO = Qwen2AudioConfig(
    encoder=dataclasses.replace(whisper.NANO, pool_size=2, compat=True),
    language_model=dataclasses.replace(QWEN2_NANO, max_positions=512, tied_head=False),
    audio_token_id=999,
)
VARIANTS = {"7b": BASE, "nano": NANO}


def count_audio_tokens(config: Qwen2AudioConfig, num_frames: int) -> int:
    """States, and so tokens, of a recording of so many real frames (10 ms each)."""
    return (num_frames + 1) // 2 // config.encoder.pool_size


def expand_audio_tokens(
    config: Qwen2AudioConfig, ids: Sequence[int], num_frames: Sequence[int]
) -> Int[np.ndarray, " L"]:
    """``ids`` with each `<|AUDIO|>` repeated once a state of its recording, int32.

    Args:
        ids: of one text, with one `<|AUDIO|>` a recording.
        num_frames: real frames of its recordings, in their order.

    Raises:
        DataError: the text names more or fewer recordings than there are, or one is too short for a single state.
    """
    is_audio = np.asarray(ids) == config.audio_token_id
    if is_audio.sum() != len(num_frames):
        raise DataError(
            f"a text names {is_audio.sum()} recordings by <|AUDIO|> (id {config.audio_token_id}) and has "
            f"{len(num_frames)}: make them agree"
        )
    for frames in num_frames:
        if count_audio_tokens(config, frames) < 1:
            needed = next(n for n in itertools.count(1) if count_audio_tokens(config, n))
            raise DataError(
                f"a recording has {frames} frames of 10 ms, and the first state is made of {needed}: give one of "
                f"{needed * 0.01:g} s at least"
            )
    repeats = np.ones(len(ids), np.int64)
    repeats[is_audio] = [count_audio_tokens(config, frames) for frames in num_frames]
    return np.repeat(np.asarray(ids, np.int32), repeats)


class Qwen2Audio(nn.Module):
    """Token ids, their mask, and the recordings they name, to logits or states, of every token or of each row's last.

    Parameters: ``encoder``, ``projector`` (kernel and bias), ``language_model``.
    """

    config: Qwen2AudioConfig
    dtype: jnp.dtype
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self,
        ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"],
        features: Float[Array, "B C T F"] | None = None,
        frame_mask: Bool[Array, "B C T"] | None = None,
        *,
        cache: KVCache | None = None,
        output: Output = "logits",
    ) -> Array | tuple[Array, KVCache]:
        """Reads ``ids``, whose `<|AUDIO|>` stand for the states of the row's recordings, one after the other.

        Args:
            ids: tokens of `expand_audio_tokens`. A row that has more or fewer `<|AUDIO|>` than its recordings have
                states comes out as NaN: nothing inside `jit` can raise, and no loss survives it.
            mask: True for real tokens; they may be padded left or right.
            features: log-mel of up to C recordings a row; None where the tokens name none, as in a step of
                generation.
            frame_mask: True for real frames, none in recordings that a row does not have.
            cache: as in `alm_jax.encoders.text.llama.Llama`.
            output: as there.

        Returns:
            As there.

        Raises:
            UserError: there are features without a mask or a mask without features.
        """
        config = self.config
        if (features is None) != (frame_mask is None):
            raise UserError("features and frame_mask come together: give both or neither")
        embeds = embeds_mask = None
        if features is not None and frame_mask is not None:
            slots = mask & (ids == config.audio_token_id)
            embeds, agrees = self._embed_audio(features, frame_mask, slots)
            embeds = jnp.where(agrees[:, None, None], embeds, jnp.nan)
            embeds_mask = slots | ~agrees[:, None]
        decoder = Llama(config.language_model, self.dtype, self.remat, name="language_model")
        return decoder(ids, mask, embeds=embeds, embeds_mask=embeds_mask, cache=cache, output=output)

    def _embed_audio(
        self, features: Float[Array, "B C T F"], frame_mask: Bool[Array, "B C T"], slots: Bool[Array, "B L"]
    ) -> tuple[Float[Array, "B L D"], Bool[Array, " B"]]:
        """The k-th state of a row's recordings for the k-th of its slots, and whether there are as many."""
        config, (rows, clips, frames) = self.config, frame_mask.shape
        frame_mask = frame_mask.reshape(rows * clips, frames)
        encoder = WhisperEncoder(config.encoder, self.dtype, remat=self.remat, name="encoder")
        states = encoder(features.reshape(rows * clips, *features.shape[2:]), mask=frame_mask)
        width = (config.language_model.width,)
        states = Dense(width, ("audio_embed", "embed"), self.dtype, name="projector")(states)
        states = states.reshape(rows, -1, *width)
        is_real = compute_token_mask(config.encoder, frame_mask).reshape(rows, -1)
        # Real states first, in their order; row by row, so that rows on several devices stay where they are.
        order = jnp.argsort(~is_real, axis=1, stable=True)
        chosen = jnp.take_along_axis(order, jnp.cumsum(slots, axis=1) - 1, axis=1, mode="clip")
        embeds = jnp.take_along_axis(states, chosen[:, :, None], axis=1, mode="clip")
        return embeds, jnp.sum(slots, axis=1) == jnp.sum(is_real, axis=1)


def _example(config: Qwen2AudioConfig) -> tuple[jax.ShapeDtypeStruct, ...]:
    frames, encoder = 4 * config.encoder.pool_size, config.encoder
    return (
        jax.ShapeDtypeStruct((2, 4), jnp.int32),
        jax.ShapeDtypeStruct((2, 4), jnp.bool_),
        jax.ShapeDtypeStruct((2, 1, frames, encoder.num_mels), jnp.float32),
        jax.ShapeDtypeStruct((2, 1, frames), jnp.bool_),
    )


FAMILY = Family(
    name="qwen2_audio",
    kind="language model",
    config_type=Qwen2AudioConfig,
    build=Qwen2Audio,
    variants=VARIANTS,
    example=_example,
    frontend=WhisperSpec(num_mels=128, clip=ClipSpec(clip_sec=30.0, pad="zero")),
    source="https://arxiv.org/abs/2407.10759",
)
