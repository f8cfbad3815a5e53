"""The four maps of feature fusion against ClapFeatureExtractor, long and short recordings in one batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import ClapFeatureExtractor

from alm_jax.ops.frontends import ClipSpec, FusionSpec, compute_fusion
from alm_jax.ops.frontends.fusion import _part_starts

RATE = 48000

fuse = jax.jit(compute_fusion, static_argnums=2)
part_starts = jax.jit(_part_starts)


def spec(pad: str = "repeat_pad", **fields: bool) -> FusionSpec:
    return FusionSpec(clip=ClipSpec(clip_sec=1.0, pad=pad), **fields)


@pytest.fixture(scope="module")
def ragged(recordings: Callable[[int], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Recordings of 5, 2.73 and 1 s, 1 s and 300 samples, 1 s and a hop, 0.7, 0.4 and 0 s, and their lengths.

    What lies past an end is noise, which nothing may depend on.
    """
    lengths = np.array([240000, 131000, 48000, 48300, 48480, 33600, 19200, 0], np.int32)
    waveform = np.random.default_rng(0).uniform(-1, 1, (8, 240000)).astype(np.float32)
    whole = recordings(RATE)
    for row, length in enumerate(lengths):
        waveform[row, :length] = whole[1 + row % 4, :length]  # the other one soon falls silent
    return waveform, lengths


@pytest.mark.parametrize(
    ("pad", "theirs"), [("repeat_pad", "repeatpad"), ("repeat", "repeat"), ("zero", "pad")]
)
def test_equals_the_extractor(
    ragged: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch, pad: str, theirs: str
) -> None:
    waveform, lengths = ragged
    # Its draw from each third, replaced by the middle that is taken without a key.
    monkeypatch.setattr(np.random, "choice", lambda places: places[(len(places) - 1) // 2])
    extractor = ClapFeatureExtractor(max_length_s=1, frequency_min=50, truncation="fusion", padding=theirs)
    features, longer = fuse(waveform, lengths, spec(pad))
    assert features.shape == (8, 4, 101, 64)
    np.testing.assert_array_equal(longer, [True, True, False, False, True, False, False, False])
    for row in range(7):
        want, want_longer = extractor._get_input_mel(
            waveform[row, : lengths[row]].astype(np.float64), RATE, "fusion", theirs
        )
        assert want_longer == longer[row]
        error = np.abs(np.asarray(features[row], np.float64) - want)
        # Measured: largest 0.019 dB, mean 2.3e-4, in a recording near the floor.
        assert error.max() < 0.04
        assert error.mean() < 5e-4
    assert (features[7] == -100).all()


def test_places_are_those_of_numpys_thirds() -> None:
    num_places = np.arange(1, 40)
    thirds = [np.array_split(np.arange(n), 3) for n in num_places]
    middle = np.array([[part[(len(part) - 1) // 2] if len(part) else 0 for part in row] for row in thirds])
    np.testing.assert_array_equal(np.stack(part_starts(jnp.asarray(num_places), None), axis=1), middle)
    many = jnp.tile(jnp.asarray(num_places), 200)
    drawn = np.stack(part_starts(many, jax.random.key(0)), axis=1).reshape(200, len(num_places), 3)
    for row, parts in enumerate(thirds):
        for third, part in enumerate(parts):
            places = set(part.tolist()) or {0}
            found = set(drawn[:, row, third].tolist())
            assert found <= places
            assert len(found) == len(places)  # 200 draws from at most 13


def test_in_training_the_parts_are_drawn(ragged: tuple[np.ndarray, np.ndarray]) -> None:
    waveform, lengths = ragged
    fixed, _ = fuse(waveform, lengths, spec())
    first, again, other = (fuse(waveform, lengths, spec(), jax.random.key(seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[:, 0], fixed[:, 0])
    np.testing.assert_array_equal(first[2:4], fixed[2:4])
    for part in (1, 2, 3):
        assert (first[0, part] != other[0, part]).any()


def test_16_bits_as_laion_has_it(ragged: tuple[np.ndarray, np.ndarray]) -> None:
    waveform, lengths = ragged
    rounded = (np.clip(waveform, -1, 1) * 32767.0).astype(np.int16) / np.float32(32767.0)
    got, _ = fuse(waveform, lengths, spec(int16_quantize=True))
    want, _ = fuse(rounded, lengths, spec())
    plain, _ = fuse(waveform, lengths, spec())
    assert np.abs(got - want).mean() < 1e-4
    assert np.abs(plain - want).mean() > 1e-2
