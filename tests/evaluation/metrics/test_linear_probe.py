"""The linear probe: what it separates, that scale does not matter, and that test clips teach it nothing."""

import numpy as np
import pytest

from alm_jax.errors import DataError
from alm_jax.evaluation.metrics.linear_probe import linear_probe_hits


def linear_probe_accuracy(*given):
    return float(linear_probe_hits(*given).mean())


def make(seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centres = np.array([[4.0, 0, 0, 0], [0, 4.0, 0, 0], [0, 0, 4.0, 0]])
    return (centres[labels] + rng.standard_normal((count, 4))).astype(np.float32), labels


def test_apart_is_told_apart_and_noise_is_chance():
    (feat, labels), (test_feat, test_labels) = make(0), make(1, 300)
    assert linear_probe_accuracy(feat, labels, test_feat, test_labels) > 0.95
    noise = np.random.default_rng(2).standard_normal((300, 4)).astype(np.float32)
    assert 0.2 < linear_probe_accuracy(feat, labels, noise, test_labels) < 0.5


def test_units_of_a_feature_do_not_matter_nor_one_that_never_varies():
    (feat, labels), (test_feat, test_labels) = make(0), make(1)
    expected = linear_probe_accuracy(feat[:, 1:], labels, test_feat[:, 1:], test_labels)
    units, offset = np.float32([1e6, 1e-3, 50.0, 0.0]), np.float32([-3e6, 7.0, 0.0, 5.0])
    columns = [1, 2, 3, 0]
    found = linear_probe_accuracy(
        feat[:, columns] * units + offset, labels, test_feat[:, columns] * units + offset, test_labels
    )
    assert found == expected


def test_test_clips_are_standardised_by_training_clips():
    """Alone, shifted clips would look like any others."""
    (feat, labels), (test_feat, test_labels) = make(0), make(1)
    far = test_feat + np.float32([1000.0, 0, 0, 0])
    assert linear_probe_accuracy(feat, labels, far, test_labels) == pytest.approx(1 / 3)


def test_what_cannot_be_probed_is_refused():
    feat, labels = make(0)
    with pytest.raises(DataError, match="needs two"):
        linear_probe_accuracy(feat, np.zeros_like(labels), feat, labels)
    with pytest.raises(DataError, match="not finite"):
        linear_probe_accuracy(feat * np.float32(np.nan), labels, feat, labels)
    with pytest.raises(DataError, match="same for every clip"):
        linear_probe_accuracy(np.ones_like(feat), labels, feat, labels)
