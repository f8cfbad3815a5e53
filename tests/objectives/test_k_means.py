"""K-means of frames."""

import numpy as np
import pytest

from alm_jax.errors import DataError
from alm_jax.objectives.k_means import fit_clusters


def test_clusters_that_lie_apart_are_found_whatever_the_scale_of_their_numbers(rng):
    scale, offset = np.array([1.0, 1000.0, 0.0]), np.array([5.0, -300.0, 2.0])
    centres = np.array([[0, 0, 0], [10, 0, 0], [0, 10, 0], [10, 10, 0]]) * scale + offset
    owner = rng.integers(0, 4, 400)
    frames = (centres[owner] + rng.normal(0, 0.3, (400, 3)) * scale).astype(np.float32)
    found = fit_clusters(frames, 4, seed=0)
    assert {name: value.dtype for name, value in found.items()} == dict.fromkeys(found, np.dtype("float32"))
    # A number that never changes has no deviation to be divided by.
    assert found["deviation"][2] == 1
    standard = (frames - found["mean"]) / found["deviation"]
    nearest = np.square(standard[:, None] - found["centroids"]).sum(axis=-1).argmin(axis=1)
    assert len({(own, unit) for own, unit in zip(owner, nearest, strict=True)}) == 4
    again = fit_clusters(frames, 4, seed=0)
    for name, value in found.items():
        np.testing.assert_array_equal(value, again[name])


def test_more_units_than_frames_are_refused():
    with pytest.raises(DataError, match="3 frames cannot be the centres of 4 units"):
        fit_clusters(np.zeros((3, 2), np.float32), 4, seed=0)
