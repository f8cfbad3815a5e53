"""The waveform as a front-end, against transformers' extractor, and where a recording ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.ops.augment import roll_time
from alm_jax.ops.frontends import ClipSpec, WaveformSpec
from alm_jax.ops.frontends.clip import trim_zeros
from alm_jax.ops.frontends.waveform import compute_waveform


def test_normalised_as_wav2vec2_does():
    transformers = pytest.importorskip("transformers")
    x = np.random.default_rng(0).normal(0.1, 0.02, (2, 4000)).astype(np.float32)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    expected = extractor(list(x), sampling_rate=16000, return_tensors="np")["input_values"]
    spec = WaveformSpec(clip=ClipSpec(clip_sec=0.25))
    assert (spec.num_frames, spec.hop_samples) == (4000, 1)
    # Values up to 4, measured 1e-6: a mean five deviations from zero is taken away in float32.
    np.testing.assert_allclose(compute_waveform(jnp.asarray(x), spec), expected, atol=2e-6)
    plain = WaveformSpec(normalise=False, clip=ClipSpec(clip_sec=0.25))
    np.testing.assert_array_equal(compute_waveform(jnp.asarray(x), plain), x)


def test_a_short_recording_is_normalised_by_itself():
    """And then filled up with zeros, as transformers' extractor fills up a batch."""
    transformers = pytest.importorskip("transformers")
    x = np.random.default_rng(0).normal(0.1, 0.02, (3, 4000)).astype(np.float32)
    length = np.array([4000, 900, 0])
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    rows = [row[:n] for row, n in zip(x[:2], length, strict=False)]
    expected = extractor(rows, sampling_rate=16000, padding=True, return_tensors="np")["input_values"]
    padded = np.where(np.arange(4000) < length[:, None], x, 0)
    got = compute_waveform(
        jnp.asarray(padded), WaveformSpec(clip=ClipSpec(clip_sec=0.25)), jnp.asarray(length)
    )
    np.testing.assert_allclose(got[:2], expected, atol=2e-6)
    np.testing.assert_array_equal(got[2], 0)


def test_zeros_at_the_end_are_no_sound():
    x = jnp.asarray([[0.0, 1.0, 0.0, 2.0, 0.0, 0.0], [0.0] * 6, [1.0] * 6, [3.0, 0.0, 0.0, 4.0, 0.0, 0.0]])
    length = trim_zeros(x, jnp.asarray([6, 5, 4, 3]))
    np.testing.assert_array_equal(length, [4, 1, 4, 1])
    assert int(trim_zeros(x, jnp.zeros(4, jnp.int32)).sum()) == 0


def test_a_roll_of_the_sound_leaves_its_padding_at_the_end():
    length = np.array([7, 3, 1, 0])
    x = np.where(np.arange(7)[None, :] < length[:, None], np.arange(1.0, 8.0)[None, :], 0.0)
    rolled = [
        np.asarray(roll_time(jnp.asarray(x), jax.random.key(s), jnp.asarray(length))) for s in range(20)
    ]
    for row, n in enumerate(length):
        seen = {tuple(r[row, :n]) for r in rolled}
        rotations = {tuple(np.roll(x[row, :n], shift)) for shift in range(n)} or {()}
        assert seen <= rotations
        assert len(seen) >= min(max(n, 1), 3)
        assert not any(r[row, n:].any() for r in rolled)
