"""Waveforms of zero mean and unit variance, as most wav2vec 2.0 and HuBERT models were trained on."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

# That of transformers' Wav2Vec2FeatureExtractor.
_EPSILON = 1e-7


def standardise_waveform(
    waveform: Float[Array, "B W"], mask: Bool[Array, "B W"] | None = None
) -> Float[Array, "B W"]:
    """(x - mean) / sqrt(var + 1e-7) of each row's real samples, float32 or wider; zero where ``mask`` is False.

    For weights whose preprocessor_config.json says ``do_normalize``.
    """
    if mask is None:
        mask = jnp.ones(waveform.shape, bool)
    x = jnp.where(mask, waveform.astype(jnp.promote_types(waveform.dtype, jnp.float32)), 0)
    count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    centred = jnp.where(mask, x - jnp.sum(x, axis=1, keepdims=True) / count, 0)
    variance = jnp.sum(jnp.square(centred), axis=1, keepdims=True) / count
    return centred * lax.rsqrt(variance + _EPSILON)
