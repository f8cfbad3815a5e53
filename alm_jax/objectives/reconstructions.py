"""Reconstructed patches as maps of the front-end's features."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alm_jax.models.capabilities import Reconstruction
from alm_jax.ops.patchify import patchify, unpatchify


def to_maps(
    features: Float[Array, "B T F"],
    hidden: Bool[Array, "B N"],
    pixels: Float[Array, "B N pixels"],
    *,
    patch_size: int,
    is_normalized: bool,
) -> Reconstruction:
    """Patches as maps; with ``is_normalized`` their mean and deviation, which are the input's, are put back."""
    pixels, patches = pixels.astype(jnp.float32), patchify(features, patch_size)
    if is_normalized:
        deviation = jnp.sqrt(jnp.var(patches, axis=-1, keepdims=True, ddof=1) + 1e-6)
        pixels = pixels * deviation + jnp.mean(patches, axis=-1, keepdims=True)
    spread = jnp.broadcast_to(hidden[..., None], patches.shape).astype(jnp.float32)
    num_mels = features.shape[-1]
    return Reconstruction(
        features, unpatchify(spread, patch_size, num_mels) > 0.5, unpatchify(pixels, patch_size, num_mels)
    )
