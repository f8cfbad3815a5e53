"""Recordings and captions to embeddings by two towers: `alm_jax.objectives.contrastive.TwoTowers` by its old names."""

from typing import Any

from jaxtyping import Array, Bool, Float, Int

from alm_jax.models.two_towers import TwoTowersConfig
from alm_jax.objectives.contrastive import TwoTowers


def embed_recordings(
    config: TwoTowersConfig, variables: dict[str, Any], batch: dict[str, Array]
) -> Float[Array, "B E"]:
    """`TwoTowers.embed_audio`."""
    return TwoTowers(config).embed_audio(variables, batch)


def embed_captions(
    config: TwoTowersConfig,
    variables: dict[str, Any],
    text_ids: Int[Array, "B L"],
    text_mask: Bool[Array, "B L"],
) -> Float[Array, "B E"]:
    """`TwoTowers.embed_text`."""
    return TwoTowers(config).embed_text(variables, text_ids, text_mask)
