"""The whole zoo: the encoders and language models of `alm_jax.encoders.zoo`, and the models made of several of them."""

from typing import Any

from alm_jax.encoders import zoo as encoders
from alm_jax.encoders.family import Family
from alm_jax.models import qwen2_audio

COMPOSED: dict[str, Family] = {family.name: family for family in (qwen2_audio.FAMILY,)}
"""Models whose inputs depend on each other, as tokens do that stand for recordings."""
FAMILIES: dict[str, Family] = encoders.FAMILIES | COMPOSED
"""In the order that `alm zoo` lists them."""


def family_of(config: Any) -> Family:
    """The family whose config this is. Raises UserError for anything else."""
    for family in COMPOSED.values():
        if type(config) is family.config_type:
            return family
    return encoders.family_of(config)
