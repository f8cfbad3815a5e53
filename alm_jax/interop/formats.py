"""Every checkpoint layout that the project reads and writes, and every comparison with an oracle.

A family's file ends with ``FORMATS`` and ``PARITY``; here is one line for each.
"""

from typing import Any

from alm_jax.errors import UserError
from alm_jax.interop import (
    ast,
    audio_mae,
    bart,
    beats,
    bert,
    cav_mae,
    ced,
    clap_weights,
    clip_text,
    cnn14,
    encodec,
    gpt2,
    laion,
    llama,
    ms_clap,
    qwen2,
    qwen2_audio,
    sentence_bert,
    t5,
    wav2vec2,
    whisper,
)
from alm_jax.interop.format import Format
from alm_jax.interop.parity import Parity

FORMATS: dict[str, Format] = {
    layout.name: layout
    for layout in (
        *clap_weights.FORMATS,
        *laion.FORMATS,
        *ms_clap.FORMATS,
        *cnn14.FORMATS,
        *beats.FORMATS,
        *ced.FORMATS,
        *ast.FORMATS,
        *audio_mae.FORMATS,
        *cav_mae.FORMATS,
        *whisper.FORMATS,
        *wav2vec2.FORMATS,
        *encodec.FORMATS,
        *bert.FORMATS,
        *sentence_bert.FORMATS,
        *clip_text.FORMATS,
        *t5.FORMATS,
        *bart.FORMATS,
        *gpt2.FORMATS,
        *llama.FORMATS,
        *qwen2.FORMATS,
        *qwen2_audio.FORMATS,
    )
}
"""By name, in the order that `alm zoo` lists them."""

PARITY: tuple[Parity, ...] = (
    *clap_weights.PARITY,
    *ms_clap.PARITY,
    *cnn14.PARITY,
    *beats.PARITY,
    *ced.PARITY,
    *ast.PARITY,
    *audio_mae.PARITY,
    *cav_mae.PARITY,
    *whisper.PARITY,
    *wav2vec2.PARITY,
    *encodec.PARITY,
    *bert.PARITY,
    *sentence_bert.PARITY,
    *clip_text.PARITY,
    *t5.PARITY,
    *bart.PARITY,
    *gpt2.PARITY,
    *llama.PARITY,
    *qwen2.PARITY,
    *qwen2_audio.PARITY,
)
"""In the order of docs/parity.md."""


def format_named(name: str) -> Format:
    """The format of that name. Raises UserError with the names there are."""
    if name not in FORMATS:
        raise UserError(f"there is no format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]


def format_of_architecture(architecture: str) -> Format:
    """The whole-file format of a class of transformers. Raises UserError with the classes there are."""
    # A format that ignores keys is a part of a class, and is asked for by name or known by other files.
    by_class = {
        kind: layout for layout in FORMATS.values() if not layout.ignored for kind in layout.architectures
    }
    if architecture not in by_class:
        raise UserError(f"{architecture!r} is no class that alm_jax reads; it reads {', '.join(by_class)}")
    return by_class[architecture]


def formats_of(config: Any) -> tuple[Format, ...]:
    """Every format that holds models of this config's type."""
    return tuple(layout for layout in FORMATS.values() if layout.config_type is type(config))


def formats_around(config: Any) -> tuple[Format, ...]:
    """Every format that holds models of this config's type, or two towers whose audio tower is one."""
    towers = (layout for layout in FORMATS.values() if type(config) in layout.audio_towers)
    return (*formats_of(config), *towers)
