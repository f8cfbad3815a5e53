"""A short soak; `python tests/run/soak.py` makes a long one."""

import pytest
from soak import soak


@pytest.mark.slow
@pytest.mark.faults
def test_a_run_that_is_killed_at_random_is_the_uninterrupted_one(tmp_path):
    places = soak(tmp_path, kills=5, seed=1, steps=40)
    assert sum(places.values()) == 5
