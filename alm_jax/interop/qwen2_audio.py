"""Qwen2-Audio as `transformers.Qwen2AudioForConditionalGeneration` saves it.

The keys are those on disk, `audio_tower.*` and `language_model.*`; the class has others in memory.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from alm_jax.encoders import family
from alm_jax.encoders.audio.whisper import WhisperEncoderConfig
from alm_jax.errors import UserError
from alm_jax.interop.entry import Entry, linear
from alm_jax.interop.fields import Fields
from alm_jax.interop.format import Format
from alm_jax.interop.llama import llama_entries, tied_copies, widen
from alm_jax.interop.parity import Parity, RealInputs
from alm_jax.interop.qwen2 import read_qwen2_config, write_qwen2_config
from alm_jax.interop.whisper import whisper_encoder_entries
from alm_jax.models.qwen2_audio import FAMILY, NANO, Qwen2AudioConfig, expand_audio_tokens
from alm_jax.ops.frontends import ClipSpec, WhisperSpec, compute_features

_LANGUAGE_MODEL = "language_model."


def qwen2_audio_entries(config: Qwen2AudioConfig) -> Iterator[Entry]:
    """Every key of a Qwen2AudioForConditionalGeneration."""
    encoder, decoder = config.encoder, config.language_model
    yield from whisper_encoder_entries(encoder, prefix="audio_tower.", path=("params", "encoder"))
    projector = ("params", "projector")
    yield from linear("multi_modal_projector.linear", projector, encoder.width, decoder.width)
    yield from llama_entries(decoder, prefix=_LANGUAGE_MODEL, path=("params", "language_model"))


def read_qwen2_audio_config(fields: Mapping[str, Any]) -> Qwen2AudioConfig:
    """config.json of a Qwen2AudioForConditionalGeneration, absent fields at transformers' defaults."""
    fields = Fields.of(fields)
    audio = fields.section("audio_config")
    audio.only({"activation_function": "gelu", "scale_embedding": False}, "our encoder")
    width = audio.size("d_model", 1280)
    return Qwen2AudioConfig(
        encoder=WhisperEncoderConfig(
            num_mels=audio.size("num_mel_bins", 128),
            max_positions=audio.size("max_source_positions", 1500),
            width=width,
            num_layers=audio.size("encoder_layers", 32),
            num_heads=audio.divisor("encoder_attention_heads", 20, of=width),
            mlp_dim=audio.size("encoder_ffn_dim", 5120),
            pool_size=2,
            compat=True,
        ),
        language_model=read_qwen2_config(fields.section("text_config")),
        audio_token_id=fields.token_id("audio_token_index", 151646),
    )


def write_qwen2_audio_config(config: Qwen2AudioConfig) -> dict[str, Any]:
    """config.json of the model that computes what ``config`` computes.

    Raises:
        UserError: the encoder is not one that Qwen2-Audio has.
    """
    encoder = config.encoder
    if encoder.pool_size != 2 or not encoder.compat:
        raise UserError(
            f"the encoder has pool_size {encoder.pool_size} and compat {encoder.compat}; transformers' Qwen2-Audio has "
            "2 and True, so it cannot be written in that format"
        )
    return {
        "model_type": "qwen2_audio",
        "audio_config": {
            "model_type": "qwen2_audio_encoder",
            "num_mel_bins": encoder.num_mels,
            "max_source_positions": encoder.max_positions,
            "d_model": encoder.width,
            "encoder_layers": encoder.num_layers,
            "encoder_attention_heads": encoder.num_heads,
            "encoder_ffn_dim": encoder.mlp_dim,
            "activation_function": "gelu",
            "scale_embedding": False,
        },
        "text_config": write_qwen2_config(config.language_model),
        "audio_token_index": config.audio_token_id,
    }


QWEN2_AUDIO = Format(
    name="qwen2-audio",
    config_type=Qwen2AudioConfig,
    abstract=functools.partial(family.abstract, FAMILY),
    entries=qwen2_audio_entries,
    copies=lambda config: tied_copies(config.language_model, prefix=_LANGUAGE_MODEL),
    optional=lambda config: frozenset(tied_copies(config.language_model, prefix=_LANGUAGE_MODEL)),
    architectures=("Qwen2AudioForConditionalGeneration",),
    read_config=read_qwen2_audio_config,
    write_config=write_qwen2_audio_config,
)
FORMATS = (QWEN2_AUDIO,)


def _build(config: Qwen2AudioConfig) -> Any:
    import transformers

    fields = write_qwen2_audio_config(config) | {"attn_implementation": "sdpa"}
    return transformers.Qwen2AudioForConditionalGeneration(transformers.Qwen2AudioConfig(**fields)).eval()


def _inputs(config: Qwen2AudioConfig, real: RealInputs) -> dict[str, np.ndarray]:
    """Two recordings, of which the second is real for the first three fifths only, each referred to within a
    caption."""
    clip_sec = config.encoder.max_positions / 50
    spec = WhisperSpec(num_mels=config.encoder.num_mels, clip=ClipSpec(clip_sec=clip_sec))
    waveforms = real.waveforms(spec.sample_rate_hz, clip_sec)
    num_frames = (spec.num_frames, spec.num_frames * 3 // 5)
    is_heard = np.arange(waveforms.shape[1])[None, :] < spec.hop_samples * np.asarray(num_frames)[:, None]
    features = compute_features(jnp.asarray(np.where(is_heard, waveforms, 0)), spec)
    captions, caption_mask = real.token_ids(config.audio_token_id, 24)
    texts = [
        expand_audio_tokens(config, np.insert(row[own], 3, config.audio_token_id).tolist(), [frames])
        for row, own, frames in zip(captions, caption_mask, num_frames, strict=True)
    ]
    length = max(map(len, texts))
    return {
        "ids": np.stack([np.pad(text, (length - len(text), 0)) for text in texts]),
        "mask": np.stack([np.arange(length) >= length - len(text) for text in texts]),
        "features": np.asarray(features),
        "frame_mask": np.arange(spec.num_frames)[None, :] < np.asarray(num_frames)[:, None],
    }


def _ours(config: Qwen2AudioConfig, variables: Any, given: dict[str, Any], dtype: Any) -> Any:
    encoded = given["features"][:, None], given["frame_mask"][:, None]
    logits = family.apply(FAMILY, config, variables, given["ids"], given["mask"], *encoded, dtype=dtype)
    return jnp.where(given["mask"][:, :, None], logits, 0)


def _theirs(module: Any, given: dict[str, Any]) -> Any:
    import torch

    if module.dtype == torch.float64:
        widen(module.model.language_model, module.config.text_config.rope_parameters["rope_theta"])
    logits = module(
        input_ids=given["ids"].long(),
        attention_mask=given["mask"].long(),
        input_features=given["features"].transpose(1, 2),
        feature_attention_mask=given["frame_mask"].long(),
    ).logits
    return torch.where(given["mask"][:, :, None], logits, 0.0)


PARITY = (
    Parity(
        name="qwen2_audio, nano, logits",
        layout=QWEN2_AUDIO,
        config=NANO,
        oracle=_build,
        oracle_name="transformers.Qwen2AudioForConditionalGeneration",
        inputs=_inputs,
        ours=_ours,
        theirs=_theirs,
        tolerance=1e-3,
    ),
)
