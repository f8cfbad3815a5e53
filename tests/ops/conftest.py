"""Real recordings for the front-ends."""

from collections.abc import Callable
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import soxr

SECONDS = 5


@pytest.fixture(scope="session")
def float_recordings(real_data_dir: Path) -> Callable[[int], np.ndarray]:
    """Of a sample rate: [5 W] float32, a 5 s clip of every second ESC-10 class, as the resampler leaves it."""
    by_class: dict[str, Path] = {}
    for line in (real_data_dir / "esc10/meta/esc50.csv").read_text().splitlines()[1:]:
        filename, _, _, category = line.split(",")[:4]
        by_class.setdefault(category, real_data_dir / "esc10/audio" / filename)
    stored = [soundfile.read(path, dtype="float32") for path in list(by_class.values())[::2]]

    def at_rate(rate_hz: int) -> np.ndarray:
        resampled = [soxr.resample(waveform, rate, rate_hz) for waveform, rate in stored]
        return np.stack([librosa.util.fix_length(waveform, size=SECONDS * rate_hz) for waveform in resampled])

    return at_rate


@pytest.fixture(scope="session")
def recordings(float_recordings: Callable[[int], np.ndarray]) -> Callable[[int], np.ndarray]:
    """The same, rounded to int16 PCM as they travel in a batch."""
    known: dict[int, np.ndarray] = {}

    def at_rate(rate_hz: int) -> np.ndarray:
        if rate_hz not in known:
            pcm = np.clip(np.round(float_recordings(rate_hz) * 32768), -32768, 32767)
            known[rate_hz] = (pcm / 32768).astype(np.float32)
        return known[rate_hz]

    return at_rate
