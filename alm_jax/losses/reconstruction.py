"""Masked reconstruction of spectrograms: patches (AudioMAE), frames (CTAL), and discrete labels (BEATs).

Computed in float32; returns (sum, weight), both float32: the mean is their quotient. A ``mask`` is True for what
counts: what was hidden from the encoder, and is real.
"""

from typing import Literal

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from alm_jax.losses.absolute import absolute
from alm_jax.losses.classification import cross_entropy
from alm_jax.losses.sums import add_up

_EPSILON = 1e-6


def normalize_patches(patches: Float[Array, "B N pixels"]) -> Float[Array, "B N pixels"]:
    """Targets of AudioMAE: every patch by its own mean and UNBIASED variance, (x - mean) / sqrt(var + 1e-6).

    Huang et al. 2022 (arXiv 2207.06405), section 3; the variance divides by pixels - 1, as in the released code.
    """
    patches = patches.astype(jnp.float32)
    centred = patches - jnp.mean(patches, axis=-1, keepdims=True)
    variance = jnp.sum(jnp.square(centred), axis=-1, keepdims=True) / (patches.shape[-1] - 1)
    return centred * lax.rsqrt(variance + _EPSILON)


def masked_reconstruction(
    prediction: Float[Array, "B N pixels"],
    target: Float[Array, "B N pixels"],
    mask: Bool[Array, "B N"],
    *,
    distance: Literal["mse", "l1", "norm"] = "mse",
    by_row: bool = False,
) -> tuple[Float[Array, "*rows"], Float[Array, "*rows"]]:
    """Distance of each counted patch from its target, summed; the weight is the number of counted patches.

    With ``by_row`` both are of each row, [B].

    ``distance`` of one patch:

    - mse: mean of squares over its pixels, AudioMAE's, with ``target`` from `normalize_patches` in its recipe;
    - l1: mean of absolute values. With frames for patches and mel bins for pixels it is CTAL's masked acoustic
      modelling (arXiv 2109.00181; frames from `alm_jax.ops.frame_masking`), which takes magnitudes in decibels;
    - norm: the Euclidean norm, the survey's L_ar = (1/N) sum_n ||a^_n - a_n||_2 as printed (arXiv 2501.15177).

    The target may be any spectrogram, log-mel or magnitude.
    """
    counted = mask[..., None]
    prediction = jnp.where(counted, prediction, 0).astype(jnp.float32)
    error = prediction - jnp.where(counted, target, 0).astype(jnp.float32)
    if distance == "mse":
        loss = jnp.mean(jnp.square(error), axis=-1)
    elif distance == "l1":
        loss = jnp.mean(absolute(error), axis=-1)
    else:
        square = jnp.sum(jnp.square(error), axis=-1)
        # The root has no gradient at 0, where a patch is exact or does not count.
        loss = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return add_up(loss, by_row=by_row), add_up(mask, by_row=by_row)


def masked_label_prediction(
    logits: Float[Array, "B N V"],
    labels: Int[Array, "B N"],
    mask: Bool[Array, "B N"],
    *,
    by_row: bool = False,
) -> tuple[Float[Array, "*rows"], Float[Array, "*rows"]]:
    """Cross-entropy of the tokenizer's label of each counted patch, V the size of the codebook.

    With ``by_row`` sum and weight are of each row, [B].

    BEATs, Chen et al. 2023 (arXiv 2212.09058), equation 1.
    """
    return cross_entropy(logits, labels, mask=mask, by_row=by_row)
