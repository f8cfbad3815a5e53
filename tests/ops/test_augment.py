"""Augmentations: what they may change, the ranges they draw from, one draw a row, one result a key."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.ops.augment import random_gain, roll_time, spec_augment

AUGMENTATIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "random_gain": lambda x, key: random_gain(x, key, 6.0),
    "roll_time": roll_time,
    "spec_augment": lambda x, key: spec_augment(
        x.reshape(-1, 20, 10), key, time_width=10, num_time_stripes=2, freq_width=5, num_freq_stripes=2
    ),
}


drop = jax.jit(
    spec_augment, static_argnames=("time_width", "num_time_stripes", "freq_width", "num_freq_stripes")
)


@pytest.fixture
def noise() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((64, 200)), jnp.float32)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_pure_function_of_the_key(noise: jax.Array, name: str) -> None:
    augment = jax.jit(AUGMENTATIONS[name])
    first, again, other = (np.asarray(augment(noise, jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert first.dtype == np.float32


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_bfloat16_stays(noise: jax.Array, name: str) -> None:
    out = jax.eval_shape(AUGMENTATIONS[name], noise.astype(jnp.bfloat16), jax.random.key(1))
    assert out.dtype == jnp.bfloat16


def test_gain_is_uniform_in_decibels(noise: jax.Array) -> None:
    ratio = np.asarray(random_gain(noise, jax.random.key(1), 6.0) / noise, np.float64)
    gain_db = 20 * np.log10(ratio[:, 0])
    np.testing.assert_allclose(ratio, np.repeat(ratio[:, :1], 200, axis=1), rtol=1e-6)
    assert np.abs(gain_db).max() <= 6.0
    assert np.unique(gain_db.round(4)).size > 60
    assert abs(gain_db.mean()) < 1.5  # deviation of the mean of 64 draws: 0.43
    assert gain_db.min() < -5
    assert gain_db.max() > 5


def test_roll_is_a_rotation_of_each_row() -> None:
    ramp = jnp.tile(jnp.arange(7.0)[None, :], (300, 1))
    rolled = np.asarray(roll_time(ramp, jax.random.key(1)))
    shifts = rolled.argmin(axis=1)
    for row, shift in zip(rolled, shifts, strict=True):
        np.testing.assert_array_equal(row, np.roll(np.arange(7.0), shift))
    assert np.bincount(shifts, minlength=7).min() > 20  # expected 43 each, deviation 6


def stripes(line: np.ndarray) -> list[int]:
    """Lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(int), [0]])))
    return list(edges[1::2] - edges[::2])


def test_one_stripe_of_each_kind() -> None:
    num_rows, num_frames, num_bins = 2000, 12, 8
    features = jnp.ones((num_rows, num_frames, num_bins))
    time_only = drop(
        features, jax.random.key(1), time_width=5, num_time_stripes=1, freq_width=3, num_freq_stripes=0
    )
    freq_only = drop(
        features, jax.random.key(1), time_width=5, num_time_stripes=0, freq_width=3, num_freq_stripes=1
    )
    for out, axis, size, width in ((time_only, 2, num_frames, 5), (freq_only, 1, num_bins, 3)):
        dropped = np.asarray(out) == 0
        line = dropped.any(axis=axis)
        np.testing.assert_array_equal(dropped.all(axis=axis), line)  # a stripe spans the other axis
        runs = [stripes(row) for row in line]
        assert max(len(run) for run in runs) == 1
        widths = np.array([sum(run) for run in runs])
        counts = np.bincount(widths)
        assert len(counts) == width  # 0 to width - 1, the width itself never
        np.testing.assert_allclose(counts / num_rows, 1 / width, atol=0.05)
        first = np.array([row.argmax() for row in line])
        for value in range(1, width):  # and the start anywhere in [0, size - value)
            assert set(first[widths == value]) == set(range(size - value))


def test_stripes_add_up_and_leave_the_rest() -> None:
    features = np.random.default_rng(0).uniform(1, 2, (200, 50, 20)).astype(np.float32)
    out = np.asarray(
        drop(features, jax.random.key(1), time_width=10, num_time_stripes=2, freq_width=6, num_freq_stripes=2)
    )
    dropped = out == 0
    np.testing.assert_array_equal(out[~dropped], features[~dropped])
    time, freq = dropped.all(axis=2), dropped.all(axis=1)
    np.testing.assert_array_equal(dropped, time[:, :, None] | freq[:, None, :])
    assert time.sum(axis=1).max() > 10  # more than one stripe of at most 9
    assert freq.sum(axis=1).max() > 6
    assert max(len(stripes(row)) for row in time) == 2
    assert len({row.tobytes() for row in time}) > 150


@pytest.mark.parametrize(("time_width", "freq_width"), [(13, 4), (4, 9), (0, 4)])
def test_stripes_that_cannot_be_drawn(time_width: int, freq_width: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 12 and 1 to 8"):
        spec_augment(
            jnp.ones((1, 12, 8)),
            jax.random.key(0),
            time_width=time_width,
            num_time_stripes=1,
            freq_width=freq_width,
            num_freq_stripes=1,
        )
