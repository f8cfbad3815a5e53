"""Real recordings and captions for the comparisons of parity.py: ESC-10 and AudioCaps, or any two in their place."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr

from alm_jax.errors import DataError
from alm_jax.interop.parity import RealInputs

# A crackling fire and a rooster.
_RECORDINGS = ("esc10/audio/1-17150-A.ogg", "esc10/audio/1-26806-A.ogg")
_CAPTIONS = "audiocaps/test.csv"


def load_real_inputs(data_dir: str | Path) -> RealInputs:
    """Two ESC-10 clips, and two AudioCaps captions of different lengths.

    Args:
        data_dir: holds ``esc10/audio`` and ``audiocaps/test.csv``.

    Raises:
        DataError: a file is missing or unreadable.
    """
    data_dir = Path(data_dir)
    recordings = [_read(data_dir / name) for name in _RECORDINGS]
    captions = data_dir / _CAPTIONS
    try:
        with captions.open(newline="", encoding="utf-8") as table:
            texts = [row["caption"] for row in csv.DictReader(table)]
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise DataError(f"{captions}: not the captions of AudioCaps ({error!r})") from error
    # The first is longer than any comparison reads; the second has padding.
    return real_inputs(recordings, (max(texts[:50], key=len), min(texts[:50], key=len)))


def real_inputs(recordings: Sequence[tuple[np.ndarray, int]], texts: tuple[str, ...]) -> RealInputs:
    """Inputs made of two waveforms, each float32 [S] with its sample rate in Hz, and two texts.

    A clip longer than its recording repeats it.
    """

    def waveforms(rate_hz: int, seconds: float) -> np.ndarray:
        num_samples = round(rate_hz * seconds)
        clips = []
        for waveform, found_hz in recordings:
            same = waveform if found_hz == rate_hz else soxr.resample(waveform, found_hz, rate_hz, "HQ")
            clips.append(np.resize(same, num_samples).astype(np.float32))
        return np.stack(clips)

    def token_ids(vocab_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.zeros((len(texts), length), np.int32)
        mask = np.zeros((len(texts), length), np.bool_)
        for row, text in enumerate(texts):
            codes = np.frombuffer(text.encode(), np.uint8)[:length].astype(np.int64)
            # A different id for the same letter elsewhere, all over the vocabulary but its first special tokens.
            ids[row, : len(codes)] = 5 + (codes * 7919 + np.arange(len(codes)) * 104729) % (vocab_size - 5)
            mask[row, : len(codes)] = True
        return ids, mask

    return RealInputs(waveforms=waveforms, texts=texts, token_ids=token_ids)


def _read(path: Path) -> tuple[np.ndarray, int]:
    try:
        waveform, rate_hz = soundfile.read(path, dtype="float32")
    except soundfile.LibsndfileError as error:
        raise DataError(f"{path}: not a readable recording of ESC-10 ({error})") from error
    return waveform if waveform.ndim == 1 else waveform.mean(axis=1), rate_hz
