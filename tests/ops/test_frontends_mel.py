"""Mel banks against librosa, transformers, and sums computed with them in float64."""

import warnings

import librosa
import numpy as np
import pytest
from transformers.audio_utils import hertz_to_mel
from transformers.audio_utils import mel_filter_bank as transformers_mel_filter_bank

from alm_jax.errors import UserError
from alm_jax.ops.frontends.mel import hz_to_mel, mel_filter_bank, mel_to_hz

# name: (sample rate, n_fft, mels, fmin, fmax, scale, norm), (sum, max, non-zero weights, sum of row 10)
BANKS = {
    "laion_clap": (
        (48000, 1024, 64, 50.0, 14000.0, "slaney", "slaney"),
        (1.36443289, 0.01814952, 577, 0.02096330),
    ),
    "laion_clap_fusion": (
        (48000, 1024, 64, 50.0, 14000.0, "htk", None),
        (290.15024273, 0.99762644, 580, 1.17318026),
    ),
    "transformers_default": (
        (48000, 1024, 64, 0.0, 14000.0, "slaney", "slaney"),
        (1.36427280, 0.01813007, 579, 0.02115835),
    ),
    "ms_clap_2022": (
        (44100, 1024, 64, 50.0, 14000.0, "slaney", "slaney"),
        (1.48524905, 0.01799036, 629, 0.02527473),
    ),
    "htsat_32k": (
        (32000, 1024, 64, 50.0, 14000.0, "slaney", "slaney"),
        (2.04812618, 0.01814952, 866, 0.03120387),
    ),
    "cnn14_16k": (
        (16000, 512, 64, 50.0, 8000.0, "slaney", "slaney"),
        (2.04934781, 0.02162881, 495, 0.03068705),
    ),
    "whisper_80": (
        (16000, 400, 80, 0.0, 8000.0, "slaney", "slaney"),
        (1.99902410, 0.02588068, 391, 0.02486259),
    ),
    "whisper_128": (
        (16000, 400, 128, 0.0, 8000.0, "slaney", "slaney"),
        (3.19098553, 0.04168175, 394, 0.01237399),
    ),
    "audioldm": (
        (16000, 1024, 64, 0.0, 8000.0, "slaney", "slaney"),
        (4.09588016, 0.02133115, 997, 0.06399346),
    ),
    "ced": ((16000, 512, 64, 0.0, 8000.0, "htk", None), (250.19514951, 0.99956329, 501, 1.43471769)),
    "kaldi": ((16000, 512, 128, 20.0, 8000.0, "kaldi", None), (252.61048130, 0.99566405, 504, 0.82791538)),
}


def build(arguments: tuple) -> np.ndarray:
    sample_rate_hz, n_fft, num_mels, fmin_hz, fmax_hz, scale, norm = arguments
    return mel_filter_bank(
        sample_rate_hz=sample_rate_hz,
        n_fft=n_fft,
        num_mels=num_mels,
        fmin_hz=fmin_hz,
        fmax_hz=fmax_hz,
        scale=scale,
        norm=norm,
        num_silent=int(scale == "kaldi"),
    )


@pytest.mark.parametrize("name", BANKS)
def test_published_banks(name: str) -> None:
    arguments, (total, largest, num_nonzero, row_10) = BANKS[name]
    bank = build(arguments)
    assert bank.shape == (arguments[2], arguments[1] // 2 + 1)
    assert bank.dtype == np.float64
    np.testing.assert_allclose([bank.sum(), bank.max(), bank[10].sum()], [total, largest, row_10], atol=5e-9)
    assert np.count_nonzero(bank) == num_nonzero


@pytest.mark.filterwarnings("ignore:At least one mel filter")  # of transformers, about Kaldi's silent band
@pytest.mark.parametrize("name", BANKS)
def test_equals_librosa_and_transformers(name: str) -> None:
    arguments, _ = BANKS[name]
    sample_rate_hz, n_fft, num_mels, fmin_hz, fmax_hz, scale, norm = arguments
    bank = build(arguments)
    if scale != "kaldi":  # which librosa does not have
        from_librosa = librosa.filters.mel(
            sr=sample_rate_hz,
            n_fft=n_fft,
            n_mels=num_mels,
            fmin=fmin_hz,
            fmax=fmax_hz,
            htk=scale == "htk",
            norm=norm,
            dtype=np.float64,
        )
        np.testing.assert_allclose(bank, from_librosa, rtol=0, atol=1e-12)
    from_transformers = transformers_mel_filter_bank(
        num_frequency_bins=n_fft // 2 + 1,
        num_mel_filters=num_mels,
        min_frequency=fmin_hz,
        max_frequency=fmax_hz,
        sampling_rate=sample_rate_hz,
        norm=norm,
        mel_scale=scale,
        triangularize_in_mel_space=scale == "kaldi",
    )
    np.testing.assert_allclose(bank, from_transformers.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", ["slaney", "htk", "kaldi"])
def test_scales(scale: str) -> None:
    hz = np.array([0.0, 66.7, 999.0, 1000.0, 1001.0, 24000.0])
    mel = hz_to_mel(hz, scale)
    np.testing.assert_allclose(mel, hertz_to_mel(hz, mel_scale=scale), rtol=1e-12)
    if scale != "kaldi":
        np.testing.assert_allclose(mel, librosa.hz_to_mel(hz, htk=scale == "htk"), rtol=1e-12)
    np.testing.assert_allclose(mel_to_hz(mel, scale), hz, rtol=1e-12, atol=1e-9)


def test_a_shared_bank_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        build(BANKS["laion_clap"][0])[0, 0] = 1.0


SPEECH_LIKE = {"sample_rate_hz": 16000, "n_fft": 512, "num_mels": 64, "scale": "slaney", "norm": "slaney"}


@pytest.mark.parametrize(("fmin_hz", "fmax_hz"), [(50.0, 14000.0), (-1.0, 8000.0), (4000.0, 4000.0)])
def test_impossible_limits_are_refused(fmin_hz: float, fmax_hz: float) -> None:
    with pytest.raises(UserError, match=r"<= 8000 \(half the sample rate\)"):
        mel_filter_bank(fmin_hz=fmin_hz, fmax_hz=fmax_hz, **SPEECH_LIKE)


def test_empty_bands_are_reported_with_their_number() -> None:
    arguments = SPEECH_LIKE | {"num_mels": 128, "n_fft": 256, "fmin_hz": 0.0, "fmax_hz": 8000.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # librosa warns too
        bank = librosa.filters.mel(sr=16000, n_fft=256, n_mels=128, fmin=0, fmax=8000)
    num_empty = int((bank.max(axis=1) == 0).sum())
    assert num_empty > 0
    with pytest.warns(UserWarning, match=f"{num_empty} of 128 mel bands"):
        mel_filter_bank(**arguments)
