"""Front-ends against librosa and ClapFeatureExtractor, on real recordings and on a golden sine."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import soundfile
import soxr
import torch
from transformers import ClapFeatureExtractor

from alm_jax.errors import UserError
from alm_jax.ops.frontends import (
    ClapSpec,
    ClipSpec,
    FrontendSpec,
    TorchlibrosaSpec,
    compute_features,
    pcm_to_float,
)
from alm_jax.ops.frontends.decibel import power_to_db
from alm_jax.ops.frontends.stft import frame, hann_window, power_spectrogram
from alm_jax.ops.frontends.torchlibrosa import quantize_int16

RATE = 48000
CLIP = ClipSpec(clip_sec=10.0)

compute = jax.jit(compute_features, static_argnums=1)


@pytest.fixture(scope="module")
def float_recordings(real_data_dir: Path) -> np.ndarray:
    """[10 240000] float32: one 5 s clip of every ESC-10 class at 48 kHz, as the resampler leaves it."""
    by_class: dict[str, Path] = {}
    for line in (real_data_dir / "esc10/meta/esc50.csv").read_text().splitlines()[1:]:
        filename, _, _, category = line.split(",")[:4]
        by_class.setdefault(category, real_data_dir / "esc10/audio" / filename)
    waveforms = []
    for path in by_class.values():
        waveform, rate = soundfile.read(path, dtype="float32")
        waveforms.append(librosa.util.fix_length(soxr.resample(waveform, rate, RATE), size=5 * RATE))
    return np.stack(waveforms)


@pytest.fixture(scope="module")
def recordings(float_recordings: np.ndarray) -> np.ndarray:
    """The same as they travel in a batch, rounded to int16 PCM."""
    pcm = np.clip(np.round(float_recordings * 32768), -32768, 32767).astype(np.int16)
    return np.asarray(pcm_to_float(jnp.asarray(pcm)))


@pytest.fixture(scope="module")
def sine() -> np.ndarray:
    """10 s at 1 kHz, amplitude 0.5, float64."""
    return 0.5 * np.sin(2 * np.pi * 1000 * np.arange(10 * RATE) / RATE)


def librosa_log_mel(waveform: np.ndarray, spec: TorchlibrosaSpec) -> np.ndarray:
    """[T F] in float64."""
    mel = librosa.feature.melspectrogram(
        y=waveform.astype(np.float64),
        sr=spec.mel_sample_rate_hz or spec.sample_rate_hz,
        n_fft=spec.n_fft,
        hop_length=spec.hop_samples,
        pad_mode="reflect",
        n_mels=spec.num_mels,
        fmin=spec.fmin_hz,
        fmax=spec.fmax_hz,
        dtype=np.float64,
    )
    return librosa.power_to_db(mel, ref=1.0, amin=1e-10, top_db=None).T


def extractor(spec: ClapSpec) -> ClapFeatureExtractor:
    return ClapFeatureExtractor(
        feature_size=spec.num_mels,
        sampling_rate=spec.sample_rate_hz,
        hop_length=spec.hop_samples,
        max_length_s=int(spec.clip.clip_sec),
        fft_window_size=spec.n_fft,
        frequency_min=spec.fmin_hz,
        frequency_max=spec.fmax_hz,
        truncation="rand_trunc" if spec.mel_scale == "slaney" else "fusion",
    )


def transformers_features(waveform: np.ndarray, spec: ClapSpec) -> np.ndarray:
    """[B T F]; clips of the spec's length exactly, so that neither cropping nor padding enters."""
    out = extractor(spec)(list(waveform), sampling_rate=spec.sample_rate_hz, return_tensors="np")
    return out["input_features"][:, 0]  # with fusion and no longer clip, four equal copies


def resample(waveforms: np.ndarray, rate_hz: int) -> np.ndarray:
    """From 48 kHz; rounded to 16 bits again."""
    if rate_hz == RATE:
        return waveforms
    return np.stack([np.round(soxr.resample(x, RATE, rate_hz) * 32768) / 32768 for x in waveforms]).astype(
        np.float32
    )


def assert_decibels_close(got: jax.Array, want: np.ndarray, *, largest: float, mean: float) -> None:
    """Largest and mean absolute error in dB; the largest is met in one quiet bin beside a loud one."""
    assert got.dtype == jnp.float32
    assert got.shape == want.shape
    error = np.abs(np.asarray(got, np.float64) - want)
    assert error.max() < largest
    assert error.mean() < mean


TORCHLIBROSA_SPECS = {
    "laion_clap": TorchlibrosaSpec(clip=CLIP),
    "laion_clap_16_bit": TorchlibrosaSpec(clip=CLIP, int16_quantize=True),
    "htsat": TorchlibrosaSpec(clip=CLIP, sample_rate_hz=32000, hop_samples=320),
    "ms_clap_2022": TorchlibrosaSpec(clip=CLIP, sample_rate_hz=44100, hop_samples=320),
    "ms_clap_2023": TorchlibrosaSpec(
        clip=CLIP, sample_rate_hz=44100, mel_sample_rate_hz=32000, hop_samples=320
    ),
}


@pytest.mark.parametrize("name", TORCHLIBROSA_SPECS)
def test_torchlibrosa_equals_librosa_on_recordings(recordings: np.ndarray, name: str) -> None:
    spec = TORCHLIBROSA_SPECS[name]
    waveform = resample(recordings, spec.sample_rate_hz)
    got = compute(waveform, spec)
    if spec.int16_quantize:
        waveform = (np.clip(waveform, -1, 1) * 32767.0).astype(np.int16) / 32767.0
    want = np.stack([librosa_log_mel(x, spec) for x in waveform])
    # Measured: largest 0.015 to 0.024, mean 1.5e-5 to 3.7e-5.
    assert_decibels_close(got, want, largest=0.03, mean=5e-5)


CLAP_SPECS = {
    "slaney": ClapSpec(clip=ClipSpec(clip_sec=5.0)),
    "htk": ClapSpec(clip=ClipSpec(clip_sec=5.0), mel_scale="htk"),
    "slaney_16k": ClapSpec(
        clip=ClipSpec(clip_sec=5.0),
        sample_rate_hz=16000,
        hop_samples=160,
        n_fft=512,
        num_mels=32,
        fmax_hz=8000.0,
    ),
}


@pytest.mark.parametrize("name", CLAP_SPECS)
def test_clap_equals_transformers_on_recordings(recordings: np.ndarray, name: str) -> None:
    spec = CLAP_SPECS[name]
    waveform = resample(recordings, spec.sample_rate_hz)
    got = compute(waveform, spec)
    assert got.shape == (10, spec.num_frames, spec.num_mels)
    # Measured: largest 0.022 (0.003 at 16 kHz), mean 2.2e-5 to 2.8e-5 (2.5e-6).
    assert_decibels_close(got, transformers_features(waveform, spec), largest=0.03, mean=5e-5)


@pytest.mark.parametrize("mel_scale", ["slaney", "htk"])
def test_unquantised_recordings_are_as_close_as_torch_brings_them(
    float_recordings: np.ndarray, mel_scale: str
) -> None:
    """Without 16-bit noise, bins next to the floor show the rounding of any float32 FFT: torch.stft's too."""
    spec = dataclasses.replace(CLAP_SPECS["slaney"], mel_scale=mel_scale)
    want = transformers_features(float_recordings, spec)
    spectrum = torch.stft(
        torch.from_numpy(float_recordings),
        spec.n_fft,
        spec.hop_samples,
        window=torch.hann_window(spec.n_fft),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    bank = torch.from_numpy(spec.filter_bank.copy()).float()
    from_torch = 10 * torch.log10((bank @ spectrum.abs() ** 2).clamp(min=1e-10)).transpose(1, 2).numpy()
    got = compute(float_recordings, spec)
    torch_error = np.abs(from_torch - want)
    # Measured, largest in dB: Slaney 0.043 (torch 0.034), HTK 0.98 (torch 0.84, a DFT matrix product 7.8). The
    # largest is one bin's rounding, which differs between processors (torch 0.50 on another one).
    assert_decibels_close(got, want, largest=3 * torch_error.max(), mean=1.5 * torch_error.mean())


def test_golden_sine(sine: np.ndarray) -> None:
    spec = ClapSpec(clip=CLIP)
    got = np.asarray(compute(jnp.asarray(sine, jnp.float32), spec), np.float64)
    assert got.shape == (1001, 64)
    assert got.argmax() % 64 == 17
    # Measured: 2.2e-4 off in the mean and 1.5e-4 in the deviation, from the bins that hold -90 dB of leakage.
    np.testing.assert_allclose([got.mean(), got.std()], [-66.18778, 34.0776], atol=5e-4)
    np.testing.assert_allclose(got.max(), 23.270435, atol=1e-5)


# Largest and mean error in dB, measured: 0.014 and 9.5e-4 with Slaney's bank, 0.57 and 0.033 with HTK's,
# whose weights are a hundred times larger, so that rounding in the FFT reaches the floor of the logarithm.
@pytest.mark.parametrize(("mel_scale", "largest", "mean"), [("slaney", 0.03, 2e-3), ("htk", 1.0, 0.05)])
def test_clap_equals_transformers_on_a_sine(
    sine: np.ndarray, mel_scale: str, largest: float, mean: float
) -> None:
    spec = ClapSpec(clip=CLIP, mel_scale=mel_scale)
    got = compute(jnp.asarray(sine[None], jnp.float32), spec)
    assert_decibels_close(got, transformers_features(sine[None], spec), largest=largest, mean=mean)


def test_quantisation_equals_numpy() -> None:
    rng = np.random.default_rng(0)
    waveform = np.concatenate(
        [np.arange(-32768, 32768) / 32768, rng.uniform(-1.2, 1.2, 100_000), [1.0, -1.0, 0.0]]
    ).astype(np.float32)
    clipped = np.clip(waveform, -1.0, 1.0)
    steps = (clipped * np.float32(32767.0)).astype(np.int16)
    got = np.asarray(jax.jit(quantize_int16)(waveform))
    np.testing.assert_array_equal(np.round(got.astype(np.float64) * 32767), steps)
    # XLA turns the division by a constant into a product: the last bit may differ.
    np.testing.assert_allclose(got, steps / np.float32(32767.0), rtol=1.2e-7)


def test_pcm_spans_minus_one_to_one() -> None:
    pcm = jnp.asarray([-32768, -1, 0, 1, 32767], jnp.int16)
    waveform = pcm_to_float(pcm)
    assert waveform.dtype == jnp.float32
    np.testing.assert_array_equal(
        waveform, np.array([-1, -1 / 32768, 0, 1 / 32768, 32767 / 32768], np.float32)
    )


def test_pcm_equals_soundfile(tmp_path: Path) -> None:
    pcm = np.random.default_rng(0).integers(-32768, 32768, 1000).astype(np.int16)
    soundfile.write(tmp_path / "noise.wav", pcm, 16000, subtype="PCM_16")
    want, _ = soundfile.read(tmp_path / "noise.wav", dtype="float32")
    np.testing.assert_array_equal(pcm_to_float(jnp.asarray(pcm)), want)


def test_float_waveforms_pass_through_pcm() -> None:
    waveform = pcm_to_float(jnp.asarray([0.5, -1.5], jnp.bfloat16))
    assert waveform.dtype == jnp.float32
    np.testing.assert_array_equal(waveform, np.array([0.5, -1.5], np.float32))


@pytest.mark.parametrize(
    ("num_samples", "frame_samples", "hop_samples"),
    [(1000, 100, 40), (1000, 100, 50), (1000, 100, 100), (1000, 64, 100), (1003, 100, 33), (100, 100, 7)],
)
def test_frames_equal_numpy(num_samples: int, frame_samples: int, hop_samples: int) -> None:
    signal = np.random.default_rng(0).standard_normal((2, num_samples)).astype(np.float32)
    want = np.lib.stride_tricks.sliding_window_view(signal, frame_samples, axis=1)[:, ::hop_samples]
    got = frame(jnp.asarray(signal), frame_samples=frame_samples, hop_samples=hop_samples)
    np.testing.assert_array_equal(got, want)


def test_window_equals_librosa() -> None:
    np.testing.assert_allclose(
        hann_window(1024), librosa.filters.get_window("hann", 1024, fftbins=True), atol=1e-15
    )


def test_power_of_white_noise_equals_librosa() -> None:
    noise = np.random.default_rng(0).standard_normal((2, 3, 4000)).astype(np.float32)
    stft = librosa.stft(noise.astype(np.float64), n_fft=256, hop_length=96, pad_mode="reflect")
    want = np.swapaxes(np.abs(stft) ** 2, -1, -2)
    got = power_spectrogram(jnp.asarray(noise), n_fft=256, hop_samples=96)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6 * want.max())


def test_too_short_to_reflect() -> None:
    with pytest.raises(ValueError, match="512 samples cannot be reflected"):
        power_spectrogram(jnp.zeros((1, 512)), n_fft=1024, hop_samples=480)


def test_decibels_equal_librosa() -> None:
    power = np.array([0.0, 1e-30, 1e-10, 3e-7, 1.0, 123.0], np.float32)
    want = librosa.power_to_db(power.astype(np.float64), ref=1.0, amin=1e-10, top_db=None)
    np.testing.assert_allclose(power_to_db(jnp.asarray(power)), want, rtol=1e-6)


@pytest.mark.parametrize("spec", [TorchlibrosaSpec(clip=CLIP), ClapSpec(clip=CLIP, mel_scale="htk")])
def test_silence_is_the_floor_and_has_a_finite_gradient(spec: FrontendSpec) -> None:
    waveform = jnp.zeros(4800)
    np.testing.assert_array_equal(compute(waveform, spec), np.full((11, 64), -100, np.float32))
    gradient = jax.jit(jax.grad(lambda x: compute_features(x, spec).sum()))(waveform)
    assert np.isfinite(gradient).all()


def test_batch_dimensions_and_dtype() -> None:
    spec = TorchlibrosaSpec(clip=CLIP)
    waveform = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4800)), jnp.bfloat16)
    got = compute(waveform, spec)
    assert got.shape == (2, 3, 11, 64)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got[1, 2], compute(waveform[1, 2], spec), atol=1e-4)


@pytest.mark.parametrize(
    ("rate_hz", "hop_samples", "clip_sec", "num_samples", "num_frames"),
    [  # 10 s of HTSAT and LAION-CLAP, 5 s of MS-CLAP 2022, 7 s of MS-CLAP 2023
        (32000, 320, 10.0, 320000, 1001),
        (48000, 480, 10.0, 480000, 1001),
        (44100, 320, 5.0, 220500, 690),
        (44100, 320, 7.0, 308700, 965),
    ],
)
def test_clip_sizes(
    rate_hz: int, hop_samples: int, clip_sec: float, num_samples: int, num_frames: int
) -> None:
    for family in (TorchlibrosaSpec, ClapSpec):
        spec = family(sample_rate_hz=rate_hz, hop_samples=hop_samples, clip=ClipSpec(clip_sec=clip_sec))
        assert (spec.clip_samples, spec.num_frames) == (num_samples, num_frames)
        shape = jax.eval_shape(lambda x, spec=spec: compute_features(x, spec), jnp.zeros(num_samples)).shape
        assert shape == (num_frames, 64)


@pytest.mark.parametrize(("family", "num_mels"), [(TorchlibrosaSpec, 256), (ClapSpec, 257)])
def test_impossible_specs_are_refused(family: type, num_mels: int) -> None:
    with pytest.raises(UserError, match="14000 Hz at a sample rate of 16000"):
        family(sample_rate_hz=16000, clip=CLIP)
    with pytest.raises(UserError, match=r"raise clip\.clip_sec"):
        family(clip=ClipSpec(clip_sec=0.01))
    with pytest.warns(UserWarning, match=f"of {num_mels} mel bands"):
        family(num_mels=num_mels, clip=CLIP)
