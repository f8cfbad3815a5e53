"""Every family there is, by name and by the type of its config."""

from typing import Any

from alm_jax.encoders.audio import (
    ast,
    audio_mae,
    beats,
    cav_mae,
    ced,
    cnn14,
    encodec,
    htsat,
    htsat_fusion,
    packed_vit,
    wav2vec2,
    whisper,
)
from alm_jax.encoders.family import Family
from alm_jax.encoders.text import bart, bert, clip_text, gpt2, llama, t5, whisper_decoder
from alm_jax.errors import UserError

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        htsat.FAMILY,
        htsat_fusion.FAMILY,
        cnn14.FAMILY,
        beats.FAMILY,
        ced.FAMILY,
        audio_mae.FAMILY,
        ast.FAMILY,
        cav_mae.FAMILY,
        whisper.FAMILY,
        wav2vec2.FAMILY,
        packed_vit.FAMILY,
        encodec.FAMILY,
        bert.FAMILY,
        t5.ENCODER_FAMILY,
        clip_text.FAMILY,
        gpt2.FAMILY,
        llama.FAMILY,
        llama.QWEN2,
        t5.FAMILY,
        bart.FAMILY,
        whisper_decoder.FAMILY,
    )
}
"""In the order that `alm zoo` lists them."""


def family_of(config: Any) -> Family:
    """The family whose config this is. Raises UserError for anything else."""
    for family in FAMILIES.values():
        if type(config) is family.config_type:
            return family
    raise UserError(f"{type(config).__name__} is no config of the zoo; it has {sorted(FAMILIES)}")
