"""What a masked autoencoder draws and embeds: `MaskedAutoencoder` of its objective, by its old names."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax import batch as contract
from alm_jax.models.capabilities import Reconstruction
from alm_jax.objectives.masked_spectrogram import MaskedAutoencoder, MaskedSpectrogramConfig

__all__ = ["Reconstruction", "draw"]


def draw(
    config: MaskedSpectrogramConfig, variables: dict[str, Any], batch: Mapping[str, np.ndarray]
) -> Reconstruction:
    """`MaskedAutoencoder.reconstruct` on the host."""
    keys = contract.AUDIO, contract.AUDIO_NUM_SAMPLES, contract.INDEX
    placed = {key: jnp.asarray(batch[key]) for key in keys}
    return jax.tree.map(np.asarray, MaskedAutoencoder(config).reconstruct(variables, placed))
