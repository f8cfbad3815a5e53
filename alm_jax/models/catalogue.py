"""Every family there is: those of `alm_jax.encoders.families`, and models made of several of them.

A model whose inputs depend on each other, as tokens do that stand for recordings, declares a `Family` too, at the end
of its file in `alm_jax.models`.
"""

from typing import Any

from alm_jax import models
from alm_jax.encoders import families
from alm_jax.encoders.family import Family

for _family in families.families_in(models):
    families.register(_family)
FAMILIES: dict[str, Family] = families.FAMILIES


def family_of(config: Any) -> Family:
    """The family whose config this is. Raises UserError for anything else."""
    return families.family_of(config)
