"""From recordings of any length to clips of one length: where long ones are cut, how short ones are filled."""

import dataclasses
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.errors import UserError

TrainCrop: TypeAlias = Literal["random", "centre", "first"]
EvalCrop: TypeAlias = Literal["centre", "first", "chunks"]
Pad: TypeAlias = Literal["repeat_pad", "repeat", "zero"]

_CROPS = {*get_args(TrainCrop), *get_args(EvalCrop)}
_PADS = set(get_args(Pad))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """Clip length, and how recordings are cut or filled to it."""

    clip_sec: float
    """Length of a clip, seconds."""
    train_crop: TrainCrop = "random"
    """Part of a longer recording used in training: a random one (new each time), the centre, or the start."""
    eval_crop: EvalCrop = "centre"
    """Part of a longer recording used in evaluation: the centre, the start, or all of it in chunks whose embeddings
    are averaged."""
    pad: Pad = "repeat_pad"
    """Filling of a shorter recording: whole repetitions and then zeros (repeat_pad), repetitions up to the end
    (repeat), or zeros (zero)."""
    trim_zeros: bool = False
    """Whether exact zeros at the end of a recording count as padding instead of audio: many data sets fill their
    recordings up to one length."""

    def __post_init__(self) -> None:
        if not self.clip_sec > 0:
            raise UserError(f"clip_sec is {self.clip_sec}; expected a positive number of seconds")

    def num_samples(self, sample_rate_hz: int, *, n_fft: int) -> int:
        """Number of samples of a clip.

        Raises UserError where a clip is too short for one frame of ``n_fft`` samples.
        """
        num_samples = round(self.clip_sec * sample_rate_hz)
        if num_samples <= n_fft // 2:
            raise UserError(
                f"clips of {self.clip_sec:g} s are {num_samples} samples at {sample_rate_hz} Hz; frames of "
                f"n_fft={n_fft} need more than {n_fft // 2}: raise clip.clip_sec or lower n_fft"
            )
        return num_samples


def count_along(like: Int[Array, "*B"], length: int) -> Int[Array, "*ones n"]:
    """0, 1, 2, ... on an axis after those of ``like``, for a comparison with it."""
    return jnp.arange(length).reshape((1,) * like.ndim + (-1,))


def filled_length(length: Int[Array, " B"], clip_samples: int, pad: str) -> Int[Array, " B"]:
    """Number of samples of a clip that hold a recording of ``length`` samples, repeated as `fit_clips` does for
    ``pad``."""
    return {
        "repeat_pad": jnp.maximum(clip_samples // jnp.maximum(length, 1), 1) * length,
        "repeat": jnp.full_like(length, clip_samples),
        "zero": length,
    }[pad]


def trim_zeros(waveform: Float[Array, "B S"], num_samples: Int[Array, " B"]) -> Int[Array, " B"]:
    """Number of samples of each recording up to its last non-zero one; at least one for a recording with samples."""
    index = jnp.arange(waveform.shape[1])[None, :]
    sounds = (waveform != 0) & (index < num_samples[:, None])
    last = jnp.max(jnp.where(sounds, index + 1, 0), axis=1).astype(num_samples.dtype)
    return jnp.maximum(last, jnp.minimum(num_samples, 1))


def fit_clips(
    waveform: Float[Array, "B S"],
    num_samples: Int[Array, " B"],
    *,
    clip_samples: int,
    crop: str,
    pad: str,
    key: Array | None = None,
) -> tuple[Float[Array, "B C W"], Bool[Array, "B C"]]:
    """Cuts or fills every recording to clips of W = clip_samples; only its first num_samples are real.

    Longer recordings are cut by ``crop``: "random" (uniform over every position inside the real samples,
    drawn per example from ``key``), "centre", "first", or "chunks". C is 1, and for "chunks" ceil(S / W):
    chunk c starts at c W, and the last real one is moved back to end with the recording, so that every
    chunk is full of real audio. Recordings of W samples or fewer are filled by ``pad``:

    - "repeat_pad": floor(W / num_samples) whole repetitions, then zeros (``ClapFeatureExtractor``'s
      "repeatpad", LAION-CLAP's default);
    - "repeat": repetitions cut at W ("repeat");
    - "zero": zeros ("pad").

    Returns the clips, in the waveform's dtype, and a mask that is True for clips that hold real audio:
    False for chunks past the end of a recording, and everywhere in a padding row (num_samples 0); those
    are zeros.

    Raises:
      ValueError: for an unknown policy, or a random crop without a key.
    """
    if crop not in _CROPS or pad not in _PADS:
        raise ValueError(
            f"crop={crop!r}, pad={pad!r}; expected one of {sorted(_CROPS)} and of {sorted(_PADS)}"
        )
    batch_size, max_samples = waveform.shape
    length = jnp.clip(num_samples, 0, max_samples)
    overflow = jnp.maximum(length - clip_samples, 0)
    if crop == "random":
        if key is None:
            raise ValueError("crop='random' needs a key")
        start = jax.random.randint(key, (batch_size,), 0, overflow + 1)[:, None]
    elif crop == "centre":
        start = (overflow // 2)[:, None]
    elif crop == "first":
        start = jnp.zeros_like(overflow)[:, None]
    else:
        chunk_start = jnp.arange(-(-max_samples // clip_samples)) * clip_samples
        start = jnp.minimum(chunk_start[None, :], overflow[:, None])
    num_clips = start.shape[1]
    mask = jnp.arange(num_clips)[None, :] * clip_samples < length[:, None]  # [B C]

    position = jnp.arange(clip_samples)
    period = jnp.maximum(length, 1)
    source = (start[:, :, None] + position[None, None, :]) % period[:, None, None]  # [B C W]
    cut = jnp.take_along_axis(waveform, source.reshape(batch_size, -1), axis=1).reshape(source.shape)
    filled = filled_length(length, clip_samples, pad)
    real = mask[:, :, None] & (position[None, :] < filled[:, None])[:, None, :]
    return jnp.where(real, cut, 0), mask
