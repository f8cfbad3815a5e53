"""Audio as a sequence of a few hundred different integers, which a language model reads and writes like words.

Units are the clusters of k-means over frames (HuBERT, https://arxiv.org/abs/2106.07447; GSLM,
https://arxiv.org/abs/2102.01192), of cepstra or of the states of an encoder, or the codes of a codec's first codebook
(VALL-E, https://arxiv.org/abs/2301.02111). Nothing here is trained by a gradient.

Parameters: ``clusters`` (``centroids`` [units D], and ``mean`` and ``deviation`` [D] of the frames) with ``encoder``
beside it where there is one; or ``codec``, and its codebooks in ``batch_stats``.
"""

import dataclasses
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.encoders import tower
from alm_jax.encoders.audio.audio_mae import AudioMaeConfig
from alm_jax.encoders.audio.beats import BeatsConfig
from alm_jax.encoders.audio.encodec import Encodec, EncodecConfig
from alm_jax.encoders.audio.wav2vec2 import Wav2Vec2Config, compute_state_mask
from alm_jax.encoders.audio.whisper import WhisperEncoderConfig, compute_token_mask
from alm_jax.errors import UserError
from alm_jax.nn.parameter import declare, ones, zeros
from alm_jax.nn.residual_quantizer import quantize
from alm_jax.ops.cepstra import cepstra, slopes
from alm_jax.ops.frontends import TowerSpec, WaveformSpec, feature_shape
from alm_jax.ops.window_mask import window_mask
from alm_jax.types import Params, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class CepstraConfig:
    """Cepstra of the front-end's log-mel with their first and second slopes, as for HuBERT's first units."""

    num_cepstra: int = 13
    """Number of cepstra of a frame; with their slopes a frame has three times as many numbers."""


FrameEncoderConfig: TypeAlias = AudioMaeConfig | BeatsConfig | Wav2Vec2Config | WhisperEncoderConfig
"""Encoders whose states follow time: of patches, all those of one step of time are one frame."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterUnitsConfig:
    """Units as the nearest centroids, after each number of a frame is normalised to mean 0 and deviation 1."""

    num_units: int = 1000
    """Number of centroids."""
    frames: CepstraConfig | FrameEncoderConfig = CepstraConfig()
    """Frames to cluster: cepstra, or the states of an encoder."""
    layer: int | None = None
    """Block of a wav2vec 2.0 or HuBERT whose output is clustered, from 1; 0 for the input of the first, None for the
    end."""
    num_fit_clips: int = 10000
    """Number of training clips that the centroids are fitted to when a run begins, unless ``init_from`` provides
    them."""

    def __post_init__(self) -> None:
        if self.num_units < 2:
            raise UserError(f"num_units is {self.num_units}; expected at least 2")
        if self.layer is not None and not isinstance(self.frames, Wav2Vec2Config):
            raise UserError(
                f"units.layer is {self.layer}, and {type(self.frames).__name__} gives its last states alone; leave "
                "it out, or take a Wav2Vec2Config"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecUnitsConfig:
    """Units as the codes of a codec's first codebook."""

    codec: EncodecConfig = EncodecConfig()
    """The codec; its front-end is a WaveformSpec of its sample rate that does not normalise."""

    @property
    def num_units(self) -> int:
        """Entries of the codebook."""
        return self.codec.codebook_size


UnitsConfig: TypeAlias = ClusterUnitsConfig | CodecUnitsConfig


def check_units(config: UnitsConfig, frontend: TowerSpec) -> None:
    """Raises UserError where the front-end does not feed what the units are made of."""
    if isinstance(config, CodecUnitsConfig):
        if config.codec.num_channels > 1 or config.codec.piece_sec is not None:
            raise UserError(
                "units are made by a codec of one channel that codes a waveform at once; units.codec has "
                f"num_channels {config.codec.num_channels} and piece_sec {config.codec.piece_sec}"
            )
        rate = config.codec.sample_rate_hz
        if not isinstance(frontend, WaveformSpec) or frontend.normalise or frontend.sample_rate_hz != rate:
            raise UserError(
                f"units of a codec are made of the waveform: take WaveformSpec(sample_rate_hz={rate}, normalise=False) "
                "for frontend"
            )
        return
    is_waveform = isinstance(frontend, WaveformSpec)
    if is_waveform != isinstance(config.frames, Wav2Vec2Config) or len(feature_shape(frontend)) > 2:
        raise UserError(
            f"{type(frontend).__name__} does not feed {type(config.frames).__name__}: a wav2vec 2.0 takes a "
            "WaveformSpec, others a front-end that makes a log-mel of a clip"
        )
    if isinstance(config.frames, CepstraConfig):
        if not 1 <= config.frames.num_cepstra <= frontend.num_features:
            raise UserError(
                f"num_cepstra is {config.frames.num_cepstra}; of {frontend.num_features} bands there are 1 to "
                f"{frontend.num_features}"
            )
        return
    tower.check_features(config.frames, frontend.num_frames, frontend.num_features)


def frame_vectors(
    config: ClusterUnitsConfig,
    params: Params,
    features: Float[Array, "B *features"],
    frame_mask: Bool[Array, "B T"],
    *,
    dtype: Any = jnp.float32,
) -> tuple[Float[Array, "B N D"], Bool[Array, "B N"]]:
    """What is clustered, float32, and which of it is of real audio alone.

    Args:
        params: of the units.
        features: of clips, as the front-end makes them.
        frame_mask: True for real frames (samples of a waveform), padding at the end.
        dtype: of the encoder's matrix products.
    """
    frames = config.frames
    if isinstance(frames, CepstraConfig):
        static = cepstra(features, frames.num_cepstra)
        first = slopes(static, frame_mask)
        return jnp.concatenate([static, first, slopes(first, frame_mask)], axis=-1), frame_mask
    module, variables = _encoder(frames, dtype), {"params": params["encoder"]}
    states: Any
    match frames:
        case Wav2Vec2Config():
            states = module.apply(variables, features, mask=frame_mask, layer=config.layer)
            mask = compute_state_mask(frames, frame_mask)
        case WhisperEncoderConfig():
            states = module.apply(variables, features, mask=frame_mask)
            mask = compute_token_mask(frames, frame_mask)
        case _:
            size, columns = frames.patch_size, frames.num_mels // frames.patch_size
            whole = features.shape[1] // size * size
            features, frame_mask = features[:, :whole], frame_mask[:, :whole]
            mask = window_mask(frame_mask, size, size)
            states = module.apply(variables, features, mask=frame_mask)
            # AudioMAE's class token comes first.
            states = states[:, states.shape[1] - mask.shape[1] * columns :]
            states = states.reshape(len(states), mask.shape[1], -1)
    return states.astype(jnp.promote_types(states.dtype, jnp.float32)), mask


def read_units(
    config: UnitsConfig,
    variables: PyTree,
    features: Float[Array, "B *features"],
    frame_mask: Bool[Array, "B T"],
    *,
    dtype: Any = jnp.float32,
) -> tuple[Int[Array, "B N"], Bool[Array, "B N"]]:
    """The unit of every frame, int32 from 0 on, and which frames are of real audio; repetitions are still there.

    ``variables`` are those of the units, {"params": ..., "batch_stats": ...}; the rest is as in `frame_vectors`.
    """
    if isinstance(config, CodecUnitsConfig):
        given = {
            "params": variables["params"]["codec"],
            **{name: tree["codec"] for name, tree in variables.items() if name != "params"},
        }
        codec = Encodec(config.codec, jnp.dtype(dtype))
        latents: Any = codec.apply(given, features, mask=frame_mask, method="embed")
        codes = quantize(latents, given["batch_stats"]["codebooks"]["embed"][:1])
        hop = config.codec.hop_samples
        # A latent begins every hop; the first real sample of each says whether it is real.
        return codes[:, 0], frame_mask[:, ::hop][:, : codes.shape[2]]
    vectors, mask = frame_vectors(config, variables["params"], features, frame_mask, dtype=dtype)
    clusters = variables["params"]["clusters"]
    standard = (vectors - clusters["mean"][None, None]) / clusters["deviation"][None, None]
    return quantize(standard, clusters["centroids"][None])[:, 0], mask


class Clusters(nn.Module):
    """Holds ``centroids``, drawn from N(0, 1) until a run fits them, with ``mean`` 0 and ``deviation`` 1."""

    num_units: int
    width: int

    @nn.compact
    def __call__(self) -> None:
        declare(
            self, "centroids", nn.initializers.normal(1.0), (self.num_units, self.width), ("vocab", "embed")
        )
        declare(self, "mean", zeros, (self.width,), ("embed",))
        declare(self, "deviation", ones, (self.width,), ("embed",))


def init_units(config: UnitsConfig, frontend: TowerSpec, key: Array) -> PyTree:
    """Variables in boxes that carry axis names, {"params": ..., "batch_stats": ...}."""
    features = jnp.zeros((1, *feature_shape(frontend)), jnp.float32)
    if isinstance(config, CodecUnitsConfig):
        variables = Encodec(config.codec, jnp.dtype("float32")).init(
            key, features[:, : 4 * config.codec.hop_samples]
        )
        return {name: {"codec": variables[name]} for name in ("params", "batch_stats")}
    params: dict[str, Any] = {}
    key_encoder, key_clusters = jax.random.split(key)
    if isinstance(config.frames, CepstraConfig):
        width = 3 * config.frames.num_cepstra
    else:
        params["encoder"] = _encoder(config.frames, jnp.float32).init(key_encoder, features)["params"]
        real = jnp.ones((1, frontend.num_frames), bool)
        shapes = jax.eval_shape(lambda: frame_vectors(config, nn.unbox(params), features, real)[0])
        width = shapes.shape[-1]
    params["clusters"] = Clusters(config.num_units, width).init(key_clusters)["params"]
    return {"params": params, "batch_stats": {}}


def _encoder(config: Any, dtype: Any) -> nn.Module:
    return tower.build_tower(config, dtype, output="states")
