"""What is said of units."""

import numpy as np
import pytest

from alm_jax.evaluation.metrics.units import describe_units


def test_units_are_described():
    units = [np.array([0, 1, 0]), np.array([1]), np.array([], int)]
    described = describe_units(units, 5)
    assert described == pytest.approx({"per_clip": 4 / 3, "used": 2, "perplexity": 2.0})
