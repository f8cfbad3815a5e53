"""Cropping and padding against ClapFeatureExtractor's own padding and against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import ClapFeatureExtractor

from alm_jax.errors import UserError
from alm_jax.ops.frontends.clip import ClipSpec, fit_clips

GARBAGE = 777.0  # fills what lies after num_samples; it must never be seen

jitted_fit_clips = jax.jit(fit_clips, static_argnames=("clip_samples", "crop", "pad"))


def ramps(lengths: list[int], max_samples: int) -> tuple[jax.Array, jax.Array]:
    """[B S]: row i is 1000 i + 1, 1000 i + 2, ... for its length, and garbage after it."""
    waveform = np.full((len(lengths), max_samples), GARBAGE, np.float32)
    for i, length in enumerate(lengths):
        waveform[i, :length] = 1000 * i + 1 + np.arange(length)
    return jnp.asarray(waveform), jnp.asarray(lengths, jnp.int32)


def fit(lengths: list[int], max_samples: int, clip_samples: int, **policy) -> tuple[np.ndarray, np.ndarray]:
    waveform, num_samples = ramps(lengths, max_samples)
    clips, mask = jitted_fit_clips(waveform, num_samples, clip_samples=clip_samples, **policy)
    return np.asarray(clips), np.asarray(mask)


@pytest.mark.parametrize(
    ("ours", "theirs"), [("repeat_pad", "repeatpad"), ("repeat", "repeat"), ("zero", "pad")]
)
def test_padding_equals_clap_feature_extractor(
    monkeypatch: pytest.MonkeyPatch, ours: str, theirs: str
) -> None:
    # The extractor pads inside _get_input_mel: hand its waveform through in place of the log-mel.
    monkeypatch.setattr(
        ClapFeatureExtractor, "_np_extract_fbank_features", lambda self, waveform, bank: waveform
    )
    extractor = ClapFeatureExtractor(
        sampling_rate=100, max_length_s=1, frequency_max=50, fft_window_size=2048
    )
    rng = np.random.default_rng(0)
    lengths = [1, 3, 33, 34, 49, 50, 51, 99, 100]
    waveform = rng.standard_normal((len(lengths), 128)).astype(np.float32)
    got, mask = fit_clips(
        jnp.asarray(waveform), jnp.asarray(lengths, jnp.int32), clip_samples=100, crop="centre", pad=ours
    )
    assert got.shape == (len(lengths), 1, 100)
    assert mask.all()
    for i, length in enumerate(lengths):
        want, is_longer = extractor._get_input_mel(waveform[i, :length], 100, "rand_trunc", theirs)
        assert not is_longer
        np.testing.assert_array_equal(got[i], want)


@pytest.mark.parametrize("max_samples", [5, 10, 23])
@pytest.mark.parametrize(
    ("pad", "want"),
    [
        ("repeat_pad", [1, 2, 3, 4, 1, 2, 3, 4, 0, 0]),
        ("repeat", [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]),
        ("zero", [1, 2, 3, 4, 0, 0, 0, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("crop", ["random", "centre", "first", "chunks"])
def test_short_recordings(crop: str, pad: str, want: list[int], max_samples: int) -> None:
    clips, mask = fit([4], max_samples, 10, crop=crop, pad=pad, key=jax.random.key(0))
    np.testing.assert_array_equal(clips[0, 0], want)
    np.testing.assert_array_equal(mask[0], np.arange(mask.shape[1]) == 0)


@pytest.mark.parametrize("pad", ["repeat_pad", "repeat", "zero"])
@pytest.mark.parametrize(("crop", "starts"), [("first", [0, 0, 0, 0]), ("centre", [0, 0, 1, 5])])
def test_long_recordings(crop: str, starts: list[int], pad: str) -> None:
    clips, mask = fit([10, 11, 13, 20], 25, 10, crop=crop, pad=pad)
    want = np.array([1000 * i + 1 + start + np.arange(10) for i, start in enumerate(starts)])
    np.testing.assert_array_equal(clips[:, 0], want)
    assert mask.shape == (4, 1)
    assert mask.all()


def test_random_crops_cover_every_position_and_nothing_else() -> None:
    lengths = [13, 10, 20] * 200
    clips, _ = fit(lengths, 25, 10, crop="random", pad="repeat_pad", key=jax.random.key(0))
    starts = clips[:, 0, 0] - 1000 * np.arange(600) - 1
    steps = np.diff(clips[:, 0], axis=1)
    np.testing.assert_array_equal(steps, np.ones_like(steps))
    assert set(starts[0::3]) == set(range(4))
    assert set(starts[1::3]) == {0}
    assert set(starts[2::3]) == set(range(11))
    counts = np.bincount(starts[0::3].astype(int))
    assert counts.min() > 25  # expected 50 each, deviation 6


def test_random_crops_depend_on_the_key_alone() -> None:
    run = [
        fit([100] * 8, 100, 10, crop="random", pad="zero", key=jax.random.key(seed))[0] for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(run[0], run[1])
    assert (run[0] != run[2]).any()


def test_chunks_cover_a_recording_and_end_with_it() -> None:
    clips, mask = fit([25, 20, 11, 10, 3, 0], 26, 10, crop="chunks", pad="repeat_pad")
    assert clips.shape == (6, 3, 10)
    np.testing.assert_array_equal(mask, [[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(clips[0], 1 + np.array([[0], [10], [15]]) + np.arange(10)[None, :])
    np.testing.assert_array_equal(clips[1, :2], 1001 + np.array([[0], [10]]) + np.arange(10)[None, :])
    np.testing.assert_array_equal(clips[2, :2], 2001 + np.array([[0], [1]]) + np.arange(10)[None, :])
    np.testing.assert_array_equal(clips[3, 0], 3001 + np.arange(10))
    np.testing.assert_array_equal(clips[4, 0], [4001, 4002, 4003] * 3 + [0])
    np.testing.assert_array_equal(clips[~mask], 0)


@pytest.mark.parametrize("crop", ["random", "centre", "first", "chunks"])
@pytest.mark.parametrize("pad", ["repeat_pad", "repeat", "zero"])
def test_padding_rows_are_silent_and_masked(crop: str, pad: str) -> None:
    clips, mask = fit([0, 12], 25, 10, crop=crop, pad=pad, key=jax.random.key(0))
    assert not mask[0].any()
    np.testing.assert_array_equal(clips[0], 0)
    assert mask[1, 0]
    assert not (clips == GARBAGE).any()


def test_the_recording_keeps_its_dtype() -> None:
    clips, _ = fit_clips(
        jnp.ones((1, 4), jnp.bfloat16), jnp.asarray([4], jnp.int32), clip_samples=6, crop="first", pad="zero"
    )
    assert clips.dtype == jnp.bfloat16


def test_programming_errors() -> None:
    waveform, num_samples = ramps([4], 10)
    with pytest.raises(ValueError, match="needs a key"):
        fit_clips(waveform, num_samples, clip_samples=5, crop="random", pad="zero")
    with pytest.raises(ValueError, match="crop='center'"):
        fit_clips(waveform, num_samples, clip_samples=5, crop="center", pad="zero")
    with pytest.raises(ValueError, match="pad='repeatpad'"):
        fit_clips(waveform, num_samples, clip_samples=5, crop="first", pad="repeatpad")


def test_spec_refuses_an_empty_clip() -> None:
    with pytest.raises(UserError, match=r"clip_sec is 0\.0"):
        ClipSpec(clip_sec=0.0)


def test_spec_rounds_to_whole_samples() -> None:
    assert ClipSpec(clip_sec=0.7).num_samples(44100, n_fft=1024) == 30870


def test_spec_refuses_a_clip_shorter_than_half_a_frame() -> None:
    assert ClipSpec(clip_sec=0.513).num_samples(1000, n_fft=1024) == 513
    with pytest.raises(UserError, match=r"512 samples at 1000 Hz.*more than 512: raise clip\.clip_sec"):
        ClipSpec(clip_sec=0.512).num_samples(1000, n_fft=1024)
