"""Bicubic resizing against PyTorch."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from alm_jax.ops.interpolate import bicubic_matrix, resize_time


def test_golden_numbers():
    """sin(k), k = 0..1000, to 1024 samples."""
    resized = bicubic_matrix(1001, 1024) @ np.sin(np.arange(1001)).astype(np.float32)
    np.testing.assert_allclose(resized[:5], [0.0, 0.8258750, 0.9317577, 0.2222003, -0.6840681], atol=1e-6)
    np.testing.assert_allclose(resized.sum(), 0.8266461, atol=1e-5)


# Up, down, LAION's 10 s, MS-CLAP's 7 s, the nano tower's clips, and sizes near the kernel's own.
@pytest.mark.parametrize(
    ("frames", "size"), [(1001, 1024), (965, 1024), (251, 256), (201, 256), (100, 37), (5, 9), (2, 5), (1, 4)]
)
def test_equals_pytorch(frames, size):
    features = np.random.default_rng(0).normal(-40, 30, (2, frames, 6)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.tensor(features)[:, None], (size, 6), mode="bicubic", align_corners=True
    )[:, 0]
    actual = resize_time(jnp.asarray(features), size)
    # Decibels of a magnitude of 100: one float32 step is 8e-6. Measured 3.1e-5.
    np.testing.assert_allclose(actual, expected, atol=5e-5)


def test_every_row_is_a_partition_of_one():
    np.testing.assert_allclose(bicubic_matrix(251, 256).sum(axis=1), 1.0, atol=1e-6)


def test_the_right_length_is_left_alone():
    features = jnp.ones((2, 8, 3))
    assert resize_time(features, 8) is features
