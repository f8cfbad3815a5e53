"""Every model of the zoo against its oracle, in float32 and in float64; and that the comparison sees an error."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from alm_jax.interop.formats import PARITY
from alm_jax.interop.parity import RealInputs, measure
from alm_jax.interop.real_inputs import load_real_inputs, real_inputs

FLOAT64_TOLERANCE = 1e-8


@pytest.fixture(scope="module")
def real(data_dir: Path | None) -> RealInputs:
    """ESC-10 and AudioCaps; where they are not at hand, two synthetic sounds and two texts."""
    if data_dir is not None:
        return load_real_inputs(data_dir)
    times = np.arange(5 * 44100) / 44100
    noise = np.random.default_rng(0).normal(size=times.shape)
    chirp = 0.3 * np.sin(2 * np.pi * (200 + 400 * times) * times) + 0.05 * noise
    bursts = 0.2 * noise * (np.sin(2 * np.pi * 3 * times) > 0)
    recordings = [(np.asarray(sound, np.float32), 44100) for sound in (chirp, bursts)]
    return real_inputs(recordings, ("a tone rises while the wind blows through a fence of thin wire", "hiss"))


@pytest.mark.parametrize("case", PARITY, ids=lambda case: case.name)
def test_ours_is_the_oracle(case, real):
    error = measure(case, real, dtype="float32")
    assert 0 < error.relative < case.tolerance


@pytest.mark.slow
@pytest.mark.parametrize("case", PARITY, ids=lambda case: case.name)
def test_the_difference_is_rounding(case, real):
    with jax.enable_x64(True):
        error = measure(case, real, dtype="float64")
    assert error.relative < FLOAT64_TOLERANCE


def test_names_are_apart():
    names = [case.name for case in PARITY]
    assert len(set(names)) == len(names)


def test_an_error_is_seen(real):
    """A layer norm's epsilon off by a thousandth of the variance."""
    case = next(case for case in PARITY if case.layout.name == "roberta")

    def ours(config, *rest):
        return case.ours(dataclasses.replace(config, layer_norm_eps=1e-3), *rest)

    error = measure(dataclasses.replace(case, ours=ours), real, dtype="float32")
    assert error.relative > case.tolerance
