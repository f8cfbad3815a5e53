"""What is said of units."""

import numpy as np
import pytest

from alm_jax.evaluation.unit_language_modeling import Transcript
from alm_jax.evaluation.units import describe_units


def test_units_are_described():
    units = [np.array([0, 1, 0]), np.array([1]), np.array([], int)]
    described = describe_units(units, 5)
    assert described == pytest.approx({"units/per_clip": 4 / 3, "units/used": 2, "units/perplexity": 2.0})


def test_a_transcript_is_right_where_it_is_exactly_one_of_the_texts():
    def make(written: str) -> bool:
        return Transcript(id="a", units=(1,), written=written, right=("two", "a two")).is_right

    assert make("a two")
    assert not make("two two")
