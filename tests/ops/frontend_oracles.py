"""Features of one waveform in float64, by librosa and transformers; used by the tests of the front-ends."""

import librosa
import numpy as np
from scipy.signal import lfilter
from transformers import ASTFeatureExtractor, WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from alm_jax.ops.frontends import (
    AstSpec,
    AudioLdmSpec,
    BeatsSpec,
    CedSpec,
    CtalSpec,
    FrontendSpec,
    StftSpec,
    TorchlibrosaSpec,
    WhisperSpec,
)


def oracle(waveform: np.ndarray, spec: FrontendSpec) -> np.ndarray:
    """[T F] of a waveform [W] of the spec's clip length."""
    waveform = np.asarray(waveform, np.float64)
    match spec:
        case TorchlibrosaSpec():
            return torchlibrosa(waveform, spec)
        case AstSpec():
            return ast(waveform, spec)
        case BeatsSpec():
            return beats(waveform, spec)
        case CedSpec():
            return ced(waveform, spec)
        case WhisperSpec():
            return whisper(waveform, spec)
        case AudioLdmSpec():
            return audioldm(waveform, spec)
        case CtalSpec():
            return ctal(waveform, spec)
    raise TypeError(type(spec))


def mel_power(waveform: np.ndarray, spec: FrontendSpec, **options: object) -> np.ndarray:
    """[F T] by librosa, reflected at the ends."""
    return librosa.feature.melspectrogram(
        y=waveform,
        **{"sr": spec.sample_rate_hz, "pad_mode": "reflect", "dtype": np.float64}
        | {"n_fft": spec.n_fft, "hop_length": spec.hop_samples}
        | {"n_mels": spec.num_mels, "fmin": spec.fmin_hz, "fmax": spec.fmax_hz}
        | options,
    )


def torchlibrosa(waveform: np.ndarray, spec: TorchlibrosaSpec) -> np.ndarray:
    if spec.int16_quantize:
        waveform = (np.clip(waveform, -1, 1) * 32767.0).astype(np.int16) / 32767.0
    mel = mel_power(waveform, spec, sr=spec.mel_sample_rate_hz or spec.sample_rate_hz)
    return librosa.power_to_db(mel, ref=1.0, amin=1e-10, top_db=None).T


def ced(waveform: np.ndarray, spec: CedSpec) -> np.ndarray:
    mel = mel_power(waveform, spec, htk=True, norm=None)
    return librosa.power_to_db(mel, ref=1.0, amin=1e-10, top_db=spec.top_db).T


def whisper(waveform: np.ndarray, spec: WhisperSpec) -> np.ndarray:
    extractor = WhisperFeatureExtractor(feature_size=spec.num_mels)
    return extractor._np_extract_fbank_features(waveform[None], "cpu")[0].T


def ast(waveform: np.ndarray, spec: AstSpec) -> np.ndarray:
    """Hugging Face's extractor without torchaudio, for AST's divisor of two deviations."""
    extractor = ASTFeatureExtractor(
        num_mel_bins=spec.num_mels,
        max_length=spec.padded_frames,
        mean=spec.mean,
        std=spec.std * spec.num_std / 2,
    )
    if spec.remove_mean:
        waveform = waveform - waveform.mean()
    return extractor(waveform, sampling_rate=spec.sample_rate_hz, return_tensors="np")["input_values"][0]


def beats(waveform: np.ndarray, spec: BeatsSpec) -> np.ndarray:
    bank = mel_filter_bank(257, 128, 20, 8000, 16000, None, "kaldi", triangularize_in_mel_space=True)
    fbank = spectrogram(
        waveform * 2**15,
        window_function(400, "povey", periodic=False),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=bank,
        log_mel="log",
        mel_floor=1.192092955078125e-07,
        remove_dc_offset=True,
    )
    return (fbank.T - 15.41663) / (2 * 6.55582)


def audioldm(waveform: np.ndarray, spec: AudioLdmSpec) -> np.ndarray:
    if spec.peak is not None:
        waveform = waveform - waveform.mean()
        waveform = waveform / (np.abs(waveform).max() + 1e-8) * 0.5
    waveform = np.pad(waveform, 432, mode="reflect")
    return np.log(np.maximum(mel_power(waveform, spec, power=1.0, center=False), 1e-5)).T


def ctal(waveform: np.ndarray, spec: CtalSpec) -> np.ndarray:
    window = {"win_length": spec.window_samples}
    if spec.scaling == "unit":
        mel = mel_power(lfilter([1, -0.97], [1], waveform), spec, power=1.0, **window)
        level = np.clip((20 * np.log10(np.maximum(1e-5, mel)) + 100) / 100, 0, 1)
        return np.concatenate([level, librosa.feature.delta(level)]).T
    level = np.log(mel_power(waveform, spec, **window) + 1e-6)
    features = np.concatenate([level, librosa.feature.delta(level)])
    mean, std = features.mean(axis=1, keepdims=True), features.std(axis=1, keepdims=True)
    return ((features - mean) / (std + 1e-16)).T


def complex_spectrogram(waveform: np.ndarray, spec: StftSpec) -> np.ndarray:
    """[T bins] complex128."""
    return librosa.stft(
        np.asarray(waveform, np.float64),
        n_fft=spec.n_fft,
        hop_length=spec.hop_samples,
        pad_mode="reflect",
        dtype=np.complex128,
    ).T
