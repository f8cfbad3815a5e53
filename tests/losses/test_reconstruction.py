"""Masked reconstruction against ViT-MAE's own loss, PyTorch and float64 formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.losses.reconstruction import (
    masked_label_prediction,
    masked_reconstruction,
    normalize_patches,
)
from alm_jax.ops.patchify import patchify

SHAPE = (3, 7, 16)


def draw(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prediction, target and mask of three clips of seven patches of 16 pixels."""
    rng = np.random.default_rng(seed)
    prediction, target = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    return prediction, target, rng.random(SHAPE[:2]) < 0.6


def test_the_loss_of_vit_mae_is_ours():
    """transformers computes target, unbiased normalisation and masked mean itself."""
    torch.manual_seed(0)
    model = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            image_size=16,
            patch_size=4,
            num_channels=1,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            decoder_hidden_size=16,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=16,
            norm_pix_loss=True,
        )
    ).eval()
    image = np.random.default_rng(0).normal(-4, 5, (2, 16, 16)).astype(np.float32)
    with torch.no_grad():
        output = model(torch.tensor(image)[:, None], noise=torch.rand(2, 16))

    @jax.jit
    def loss(prediction, image, hidden):
        return masked_reconstruction(prediction, normalize_patches(patchify(image, 4)), hidden)

    total, weight = loss(output.logits.numpy(), image, output.mask.numpy() == 1)
    np.testing.assert_allclose(total / weight, output.loss.item(), rtol=1e-6)


def test_patches_are_normalised_by_the_unbiased_variance():
    patches = np.random.default_rng(0).normal(-4, 5, SHAPE)
    patches[0, 0] = 3.0  # silence: only the epsilon is left
    want = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(
        patches.var(-1, ddof=1, keepdims=True) + 1e-6
    )
    np.testing.assert_allclose(
        jax.jit(normalize_patches)(patches.astype(np.float32)), want, rtol=1e-5, atol=1e-6
    )


DISTANCES = {
    "mse": lambda error: np.mean(error**2, axis=-1),
    "l1": lambda error: np.mean(np.abs(error), axis=-1),
    "norm": lambda error: np.sqrt(np.sum(error**2, axis=-1)),
}


@functools.cache
def value_and_grad(distance: str):
    loss = functools.partial(masked_reconstruction, distance=distance)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def gradient(distance: str, error: np.ndarray) -> np.ndarray:
    """Of the distance of each patch with respect to the prediction."""
    if distance == "mse":
        return 2 * error / error.shape[-1]
    if distance == "l1":
        return np.sign(error) / error.shape[-1]
    return error / DISTANCES["norm"](error)[..., None]


@pytest.mark.parametrize("distance", list(DISTANCES))
def test_every_distance_equals_its_formula(distance):
    prediction, target, mask = draw()
    error = prediction.astype(np.float64) - target
    want_grad = np.where(mask[..., None], gradient(distance, error), 0)
    # What does not count may hold anything.
    prediction[~mask], target[~mask] = np.nan, np.inf
    (total, weight), got_grad = value_and_grad(distance)(prediction, target, mask)
    np.testing.assert_allclose(total, DISTANCES[distance](error)[mask].sum(), rtol=1e-6)
    assert (float(weight), total.dtype, weight.dtype) == (mask.sum(), jnp.float32, jnp.float32)
    np.testing.assert_allclose(got_grad, want_grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("distance", list(DISTANCES))
def test_an_exact_prediction_and_nothing_to_predict_cost_nothing(distance):
    _, target, mask = draw()
    for counted in (mask, np.zeros_like(mask)):
        (total, weight), grad = value_and_grad(distance)(target, target, counted)
        assert (float(total), float(weight)) == (0.0, np.sum(counted))
        np.testing.assert_array_equal(grad, np.zeros(SHAPE))


def test_frames_by_l1_are_masked_acoustic_modelling():
    """CTAL's: torch.nn.L1Loss over all bins of the chosen frames, on magnitudes."""
    prediction, target, mask = draw()
    prediction, target = np.abs(prediction), np.abs(target)
    chosen = torch.tensor(mask)
    want = torch.nn.L1Loss()(torch.tensor(prediction)[chosen], torch.tensor(target)[chosen])
    (total, weight), _ = value_and_grad("l1")(prediction, target, mask)
    np.testing.assert_allclose(total / weight, want.item(), rtol=1e-6)


def test_bfloat16_predictions_are_computed_in_float32():
    prediction, target, mask = draw()
    rounded = jnp.asarray(prediction, jnp.bfloat16)
    (total, _), _ = value_and_grad("mse")(rounded, target, mask)
    error = np.asarray(rounded.astype(jnp.float32), np.float64) - target
    np.testing.assert_allclose(total, DISTANCES["mse"](error)[mask].sum(), rtol=1e-6)


def test_discrete_labels_equal_pytorch_on_masked_patches():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 5, 11)).astype(np.float32)
    labels = rng.integers(0, 11, (2, 5)).astype(np.int32)
    mask = rng.random((2, 5)) < 0.7
    want = torch.nn.functional.cross_entropy(
        torch.tensor(logits[mask]), torch.tensor(labels[mask]).long(), reduction="sum"
    )
    total, weight = jax.jit(masked_label_prediction)(logits, labels, mask)
    np.testing.assert_allclose([total, weight], [want.item(), mask.sum()], rtol=1e-6)
