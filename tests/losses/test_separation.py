"""Separation losses against PyTorch and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from alm_jax.losses.separation import amplitude_l1, negative_si_sdr, si_sdr

SI_SDR = jax.jit(si_sdr)
LOSS = jax.jit(jax.value_and_grad(negative_si_sdr, has_aux=True))


def test_amplitude_l1_is_the_mean_absolute_error_of_magnitudes():
    rng = np.random.default_rng(0)
    prediction, target = np.abs(rng.normal(size=(2, 3, 6, 5))).astype(np.float32)
    mask = np.arange(6)[None, :] < np.array([[6], [4], [1]])
    real = torch.tensor(mask)
    want = torch.nn.L1Loss(reduction="none")(torch.tensor(prediction)[real], torch.tensor(target)[real])
    prediction[~mask], target[~mask] = np.nan, np.inf
    loss = jax.jit(jax.value_and_grad(amplitude_l1, has_aux=True))
    (total, weight), grad = loss(prediction, target, mask=mask)
    np.testing.assert_allclose([total, total / weight], [want.sum().item(), want.mean().item()], rtol=1e-6)
    np.testing.assert_array_equal(grad, np.where(mask[..., None], np.sign(prediction - target), 0))
    np.testing.assert_array_equal(
        jax.jit(amplitude_l1)(jnp.ones((1, 2, 3)), jnp.zeros((1, 2, 3))), [6.0, 6.0]
    )


def oracle(estimate: np.ndarray, reference: np.ndarray) -> float:
    """SI-SDR of one signal by its definition, in float64."""
    scale = estimate @ reference / (reference @ reference)
    residue = estimate - scale * reference
    return 10 * np.log10((scale**2 * reference @ reference) / (residue @ residue))


def signals(num_samples: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Three estimates of references: a good one, a faint and inverted one, a bad one."""
    rng = np.random.default_rng(0)
    reference, noise = rng.normal(size=(2, 3, num_samples))
    estimate = np.array([[1.0], [-0.01], [0.1]]) * reference + np.array([[0.01], [0.001], [1.0]]) * noise
    return estimate.astype(np.float32), reference.astype(np.float32)


def test_si_sdr_equals_its_definition():
    estimate, reference = signals()
    want = [
        oracle(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(estimate, reference, strict=True)
    ]
    assert np.ptp(want) > 40
    got = SI_SDR(estimate, reference)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


def test_a_tone_in_an_orthogonal_tone_has_a_known_ratio():
    time = np.arange(1600) / 1600
    reference, other = np.sin(2 * np.pi * 5 * time), np.sin(2 * np.pi * 9 * time)
    rows = np.stack([reference + 0.1 * other, 3 * reference + 3 * other])
    got = SI_SDR(jnp.asarray(rows, jnp.float32), jnp.asarray(np.stack([reference] * 2), jnp.float32))
    np.testing.assert_allclose(got, [20.0, 0.0], atol=1e-4)


def test_scale_and_padding_change_nothing():
    estimate, reference = signals()
    want = SI_SDR(estimate[:, :3000], reference[:, :3000])
    mask = np.broadcast_to(np.arange(4000) < 3000, (3, 4000))
    estimate[~mask], reference[~mask] = np.nan, np.inf
    got = SI_SDR(estimate * 7, reference, mask=mask)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_the_loss_is_the_negative_ratio_of_rows_with_audio():
    estimate, reference = signals(500)
    mask = np.array([[True], [True], [False]]) & np.ones((3, 500), bool)
    total, weight = LOSS(estimate, reference, mask=mask)[0]
    np.testing.assert_allclose(total, -np.sum(SI_SDR(estimate, reference)[:2]), rtol=1e-6)
    assert (float(weight), float(LOSS(estimate, reference)[0][1])) == (2.0, 3.0)


def test_gradient_equals_pytorch():
    estimate, reference = signals(500)
    leaf = torch.tensor(estimate, dtype=torch.float64, requires_grad=True)
    truth = torch.tensor(reference).double()
    scale = (leaf * truth).sum(1, keepdim=True) / truth.square().sum(1, keepdim=True)
    ratio = (scale * truth).square().sum(1) / (scale * truth - leaf).square().sum(1)
    (-10 * torch.log10(ratio).sum()).backward()
    grad = LOSS(estimate, reference)[1]
    want = leaf.grad.numpy()
    # At 40 dB the residue is a hundredth of its two terms, and known to as much less: 5e-6 of the row's largest.
    largest = np.abs(want).max(axis=1, keepdims=True)
    np.testing.assert_allclose(grad / largest, want / largest, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "ratio"),
    [("exact", 100), ("silent reference", -100), ("silent estimate", 0), ("all silent", 0)],
)
def test_silence_and_exact_estimates_stay_finite(case, ratio):
    estimate, reference = (x[:1] for x in signals(100))
    if case == "exact":
        estimate = 2 * reference
    if case in ("silent reference", "all silent"):
        reference = np.zeros_like(reference)
    if case in ("silent estimate", "all silent"):
        estimate = np.zeros_like(estimate)
    (total, _), grad = LOSS(estimate, reference)
    np.testing.assert_allclose(total, -ratio, atol=1e-3)
    assert np.isfinite(grad).all()
