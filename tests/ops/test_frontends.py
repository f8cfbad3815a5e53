"""Every front-end against librosa or transformers in float64: recordings, a tone, noise; and golden figures."""

from collections.abc import Callable
from pathlib import Path

import frontend_oracles
import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import soundfile
import torch
from transformers import ClapFeatureExtractor

from alm_jax.errors import UserError
from alm_jax.ops.frontends import (
    AstSpec,
    AudioLdmSpec,
    BeatsSpec,
    CedSpec,
    ClapSpec,
    ClipSpec,
    CtalSpec,
    FrontendSpec,
    LogMelSpec,
    StftSpec,
    TorchlibrosaSpec,
    WhisperSpec,
    compute_features,
    compute_stft,
    pcm_to_float,
    published_clip,
)
from alm_jax.ops.frontends.ctal import delta
from alm_jax.ops.frontends.decibel import limit_range, power_to_db
from alm_jax.ops.frontends.pcm import quantize_int16
from alm_jax.run.config_json import from_json, to_json

CLIP = ClipSpec(clip_sec=5.0)
TEN_SEC = ClipSpec(clip_sec=10.0)
FAMILIES = [
    TorchlibrosaSpec,
    ClapSpec,
    AstSpec,
    BeatsSpec,
    CedSpec,
    WhisperSpec,
    AudioLdmSpec,
    CtalSpec,
]

compute = jax.jit(compute_features, static_argnums=1)

# name: spec; the largest error allowed, and the mean error on recordings, each two to three times what was
# measured, in the features' unit: dB, natural logarithms, or these normalised. The largest is the rounding of
# one bin near the floor beside a loud one, mostly in the tone's leakage; the mean says whether it is the same
# front-end.
SPECS: dict[str, tuple[FrontendSpec, float, float]] = {
    "laion_clap_16_bit": (TorchlibrosaSpec(clip=CLIP, int16_quantize=True), 0.25, 8e-5),
    "ms_clap_2023": (
        TorchlibrosaSpec(clip=CLIP, sample_rate_hz=44100, mel_sample_rate_hz=32000, hop_samples=320),
        0.4,
        2e-4,
    ),
    "ltu_esc50": (
        AstSpec(clip=CLIP, padded_frames=512, mean=-6.6268077, std=5.358466, num_std=1.0),
        2e-3,
        1e-6,
    ),
    "beats": (BeatsSpec(clip=CLIP), 6e-3, 8e-7),
    "ced": (CedSpec(clip=CLIP), 0.1, 3e-5),
    "whisper_128": (WhisperSpec(clip=CLIP, num_mels=128), 7e-5, 3e-7),
    "audioldm": (AudioLdmSpec(clip=CLIP), 3e-3, 2e-6),
    "ctal": (CtalSpec(clip=CLIP), 6e-4, 1.3e-7),
    "ctal_standard": (CtalSpec(clip=CLIP, scaling="standard"), 3e-4, 1e-6),
}


def tone(num_samples: int, rate_hz: int) -> np.ndarray:
    """1 kHz, amplitude 0.5."""
    return 0.5 * np.sin(2 * np.pi * 1000 * np.arange(num_samples) / rate_hz)


@pytest.mark.filterwarnings("ignore:At least one mel filter")  # of transformers, about Kaldi's silent band
@pytest.mark.parametrize("name", SPECS)
def test_equals_the_oracle(recordings: Callable[[int], np.ndarray], name: str) -> None:
    spec, largest, mean = SPECS[name]
    noise = 0.1 * np.random.default_rng(0).standard_normal(spec.clip_samples)
    waveform = np.concatenate(
        [recordings(spec.sample_rate_hz), [tone(spec.clip_samples, spec.sample_rate_hz), noise]]
    ).astype(np.float32)
    got = compute(waveform, spec)
    assert got.dtype == jnp.float32
    assert got.shape == (7, spec.num_frames, spec.num_features)
    want = np.stack([frontend_oracles.oracle(row, spec) for row in waveform])
    error = np.abs(np.asarray(got, np.float64) - want)
    assert error.max() < largest
    assert error[:5].mean() < mean


@pytest.mark.filterwarnings("ignore:At least one mel filter")  # of transformers, about Kaldi's silent band
@pytest.mark.parametrize("num_samples", [59_200, 80_000, 400, 560])
def test_ast_of_a_short_recording_is_that_of_the_authors_loader(
    recordings: Callable[[int], np.ndarray], num_samples: int
) -> None:
    """The features of the recording alone, and zeros after them before the normalisation."""
    spec = AstSpec(clip=published_clip(1024))
    short = recordings(spec.sample_rate_hz)[0, :num_samples].astype(np.float32)
    clip = np.zeros(spec.clip_samples, np.float32)
    clip[:num_samples] = short
    got = compute_features(jnp.asarray(clip[None]), spec, jnp.asarray([num_samples]))[0]
    np.testing.assert_allclose(got, frontend_oracles.oracle(short, spec), atol=2e-3)
    num_frames = 1 + (num_samples - 400) // 160
    np.testing.assert_allclose(got[num_frames:], -spec.mean / (2 * spec.std), rtol=1e-6)
    nothing = compute_features(jnp.asarray(clip[None]), spec, jnp.asarray([0]))
    np.testing.assert_allclose(nothing, -spec.mean / (2 * spec.std), rtol=1e-6)


CLAP_SPECS = {
    "slaney": ClapSpec(clip=CLIP),
    "htk": ClapSpec(clip=CLIP, mel_scale="htk"),
}


def transformers_clap(waveform: np.ndarray, spec: ClapSpec) -> np.ndarray:
    """[B T F]; clips of the spec's length exactly, so that neither cropping nor padding enters."""
    extractor = ClapFeatureExtractor(
        max_length_s=int(spec.clip.clip_sec),
        frequency_min=spec.fmin_hz,
        truncation="rand_trunc" if spec.mel_scale == "slaney" else "fusion",
    )
    out = extractor(list(waveform), sampling_rate=spec.sample_rate_hz, return_tensors="np")
    return out["input_features"][:, 0]  # with fusion and no longer clip, four equal copies


def assert_decibels_close(got: jax.Array, want: np.ndarray, *, largest: float, mean: float) -> None:
    """Largest and mean absolute error in dB; the largest is met in one quiet bin beside a loud one."""
    error = np.abs(np.asarray(got, np.float64) - want)
    assert error.max() < largest
    assert error.mean() < mean


@pytest.mark.parametrize("name", CLAP_SPECS)
def test_clap_equals_transformers_on_recordings(recordings: Callable[[int], np.ndarray], name: str) -> None:
    spec = CLAP_SPECS[name]
    waveform = recordings(spec.sample_rate_hz)
    # Measured: largest 0.022, mean 4.1e-5 (Slaney) and 5.1e-5 (HTK).
    assert_decibels_close(compute(waveform, spec), transformers_clap(waveform, spec), largest=0.04, mean=1e-4)


@pytest.mark.parametrize("name", CLAP_SPECS)
def test_unquantised_recordings_are_as_close_as_torch_brings_them(
    float_recordings: Callable[[int], np.ndarray], name: str
) -> None:
    """Without 16-bit noise, bins next to the floor show the rounding of any float32 FFT: torch.stft's too."""
    spec = CLAP_SPECS[name]
    waveform = float_recordings(spec.sample_rate_hz)
    want = transformers_clap(waveform, spec)
    spectrum = torch.stft(
        torch.from_numpy(waveform),
        spec.n_fft,
        spec.hop_samples,
        window=torch.hann_window(spec.n_fft),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    bank = torch.from_numpy(spec.filter_bank.copy()).float()
    from_torch = 10 * torch.log10((bank @ spectrum.abs() ** 2).clamp(min=1e-10)).transpose(1, 2).numpy()
    torch_error = np.abs(from_torch - want)
    # Measured, largest in dB: Slaney 0.043 (torch 0.034), HTK 0.98 (torch 0.84). The largest is one bin's
    # rounding, which differs between processors (torch 0.50 on another one).
    assert_decibels_close(
        compute(waveform, spec), want, largest=3 * torch_error.max(), mean=1.5 * torch_error.mean()
    )


# Of 0.5 sin(2 pi 1000 t) over 10 s: shape, mean, deviation, maximum and its band, as the extractors of
# transformers gave them. Their means of -0.95 and -0.53 were summed in float32, hence 1e-6.
def test_golden_clap() -> None:
    spec = ClapSpec(clip=TEN_SEC)
    got = np.asarray(compute(tone(480000, 48000).astype(np.float32), spec), np.float64)
    assert got.shape == (1001, 64)
    assert got.argmax() % 64 == 17
    # Measured: 2.2e-4 off in the mean and 1.5e-4 in the deviation, from the bins that hold -90 dB of leakage.
    np.testing.assert_allclose([got.mean(), got.std()], [-66.18778, 34.0776], atol=5e-4)
    np.testing.assert_allclose(got.max(), 23.270435, atol=1e-5)


def test_golden_ast() -> None:
    got = np.asarray(compute(tone(160000, 16000).astype(np.float32), AstSpec(clip=TEN_SEC)), np.float64)
    assert got.shape == (1024, 128)
    assert got.argmax() % 128 == 43
    np.testing.assert_allclose(
        [got.mean(), got.std(), got.max(), got[-1].min()],
        [-0.9533035, 0.5753669, 1.0827731, 0.46703237],
        atol=1e-6,
    )
    assert (got[998:] == got[-1, 0]).all()  # zeros before the normalisation


def test_golden_whisper() -> None:
    spec = WhisperSpec(clip=ClipSpec(clip_sec=30.0, pad="zero"))
    waveform = np.zeros(480000, np.float32)
    waveform[:160000] = tone(160000, 16000)
    got = np.asarray(compute(waveform, spec), np.float64)
    assert got.shape == (3000, 80)
    assert got.argmax() % 80 == 26
    np.testing.assert_allclose(
        [got.mean(), got.std(), got.max(), got.min()],
        [-0.52808446, 0.24117339, 1.4396516, -0.5603484],
        atol=1e-6,
    )


@pytest.mark.parametrize(("n_fft", "hop_samples"), [(2048, 320), (1024, 512)])
def test_magnitude_and_phase_equal_librosa(
    recordings: Callable[[int], np.ndarray], n_fft: int, hop_samples: int
) -> None:
    spec = StftSpec(n_fft=n_fft, hop_samples=hop_samples, clip=CLIP)
    waveform = recordings(spec.sample_rate_hz)[:2].copy()
    waveform[0, 50_000:90_000] = 0.0  # digital silence, where the phase must stay finite
    magnitude, phase = jax.jit(compute_stft, static_argnums=1)(waveform, spec)
    assert magnitude.shape == (2, spec.num_frames, spec.num_features)
    assert phase.shape == (*magnitude.shape, 2)
    want = np.stack([frontend_oracles.complex_spectrogram(row, spec) for row in waveform])
    scale = np.abs(want).max()
    np.testing.assert_allclose(magnitude, np.maximum(np.abs(want), 1e-5), atol=1e-6 * scale)
    value = np.asarray(magnitude)[..., None] * np.asarray(phase)
    np.testing.assert_allclose(value[..., 0] + 1j * value[..., 1], want, atol=1e-6 * scale)
    length = np.linalg.norm(np.asarray(phase), axis=-1)
    np.testing.assert_allclose(length[np.abs(want) > 1e-4], 1.0, atol=1e-5)


def test_clips_without_a_whole_frame_are_refused() -> None:
    with pytest.raises(UserError, match="320 samples; a frame takes 400"):
        BeatsSpec(clip=ClipSpec(clip_sec=0.02))


def test_odd_transforms_are_refused() -> None:
    with pytest.raises(UserError, match="even"):
        StftSpec(n_fft=1023, clip=CLIP)


def test_a_clips_range_ignores_its_neighbours() -> None:
    level = np.random.default_rng(0).uniform(-200, 0, (3, 20, 8)).astype(np.float32)
    level[1] += 50
    want = [librosa.power_to_db(10 ** (row / 10.0), ref=1.0, amin=1e-30, top_db=60.0) for row in level]
    np.testing.assert_allclose(limit_range(jnp.asarray(level), 60.0), want, atol=1e-4)


def test_deltas_equal_librosa() -> None:
    features = np.random.default_rng(0).standard_normal((2, 31, 5)).astype(np.float32)
    want = [librosa.feature.delta(row.T.astype(np.float64)).T for row in features]
    np.testing.assert_allclose(delta(jnp.asarray(features)), want, atol=1e-6)
    with pytest.raises(ValueError, match="9 frames"):
        delta(jnp.zeros((8, 5)))


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


def test_decibels_equal_librosa() -> None:
    power = np.array([0.0, 1e-30, 1e-10, 3e-7, 1.0, 123.0], np.float32)
    want = librosa.power_to_db(power.astype(np.float64), ref=1.0, amin=1e-10, top_db=None)
    np.testing.assert_allclose(power_to_db(jnp.asarray(power)), want, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_silence_and_neighbours(family: type) -> None:
    """Silence has finite features and gradients, and no row of a batch feels another."""
    spec = family(clip=CLIP)
    noise = np.random.default_rng(0).standard_normal(3000)
    rows = np.stack([noise, 0 * noise, 0.1 * noise]).astype(np.float32)
    louder = rows * np.array([[1.0], [1.0], [1000.0]], np.float32)

    @jax.jit
    def run(waveform: jax.Array) -> tuple[jax.Array, jax.Array]:
        features, pull_back = jax.vjp(lambda x: compute_features(x, spec), waveform)
        return features, pull_back(jnp.ones_like(features))[0]

    features, gradient = run(rows)
    beside_louder, _ = run(louder)
    assert np.isfinite(features).all()
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(features[:2], beside_louder[:2])
    if family in (TorchlibrosaSpec, ClapSpec, CedSpec):
        np.testing.assert_array_equal(features[1], np.full(features[1].shape, -100, np.float32))


def test_batch_dimensions_and_dtype() -> None:
    spec = TorchlibrosaSpec(clip=CLIP)
    waveform = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4800)), jnp.bfloat16)
    got = compute(waveform, spec)
    assert got.shape == (2, 3, 11, 64)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got[1, 2], compute(waveform[1, 2], spec), atol=1e-4)


# T and F of the published clips.
@pytest.mark.parametrize(
    ("spec", "num_samples", "num_frames", "num_features"),
    [
        (TorchlibrosaSpec(clip=TEN_SEC), 480000, 1001, 64),
        (TorchlibrosaSpec(clip=TEN_SEC, sample_rate_hz=32000, hop_samples=320), 320000, 1001, 64),
        (TorchlibrosaSpec(clip=CLIP, sample_rate_hz=44100, hop_samples=320), 220500, 690, 64),
        (
            TorchlibrosaSpec(clip=ClipSpec(clip_sec=7.0), sample_rate_hz=44100, hop_samples=320),
            308700,
            965,
            64,
        ),
        (ClapSpec(clip=TEN_SEC), 480000, 1001, 64),
        (AstSpec(clip=TEN_SEC), 160000, 1024, 128),
        (AstSpec(clip=TEN_SEC, padded_frames=None), 160000, 998, 128),
        (AstSpec(clip=TEN_SEC, padded_frames=512), 160000, 512, 128),
        (BeatsSpec(clip=TEN_SEC), 160000, 998, 128),
        (CedSpec(clip=TEN_SEC), 160000, 1001, 64),
        (WhisperSpec(clip=ClipSpec(clip_sec=30.0)), 480000, 3000, 80),
        (AudioLdmSpec(clip=TEN_SEC), 160000, 1000, 64),
        (AudioLdmSpec(clip=ClipSpec(clip_sec=10.24)), 163840, 1024, 64),
        (CtalSpec(clip=TEN_SEC), 160000, 801, 160),
    ],
)
def test_clip_sizes(spec: FrontendSpec, num_samples: int, num_frames: int, num_features: int) -> None:
    assert (spec.clip_samples, spec.num_frames, spec.num_features) == (num_samples, num_frames, num_features)
    shape = jax.eval_shape(lambda x: compute_features(x, spec), jnp.zeros(num_samples)).shape
    assert shape == (num_frames, num_features)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_spec_keeps_the_protocol(family: type) -> None:
    spec = family(clip=CLIP)
    assert isinstance(spec, LogMelSpec)
    assert spec.filter_bank.shape == (spec.num_mels, spec.n_fft // 2 + 1)
    assert hash(spec) == hash(family(clip=CLIP))  # jit takes it as a static argument
    assert from_json(to_json(spec), FrontendSpec) == spec
    with pytest.raises(UserError, match=f"{spec.fmax_hz:g} Hz at a sample rate of 8000"):
        family(sample_rate_hz=8000, clip=CLIP)
    with pytest.raises(UserError, match=r"raise clip\.clip_sec"):
        family(clip=ClipSpec(clip_sec=0.01))
    num_mels = 1000 + FAMILIES.index(family)  # a bank is built, and warned of, once
    with pytest.warns(UserWarning, match=f"of {num_mels} mel bands"):
        family(num_mels=num_mels, clip=CLIP)
