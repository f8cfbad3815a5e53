"""Recordings as users give them: paths, arrays, arrays with their rate; one or many."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import soxr
from jaxtyping import Float

from alm_jax.errors import DataError, UserError
from data_pipelines.decode import Channels, read_audio

Recording: TypeAlias = str | Path | np.ndarray | tuple[np.ndarray, int]
"""A file, a waveform of known rate, or a waveform with its sample rate in Hz."""
EXPECTED = (
    "a path, a float array of samples with full scale 1.0, mono [S] or [channels S], "
    "or a pair (array, sample rate in Hz)"
)
MAX_CHANNELS = 16
"""More rows than this are no channels: the array lies on its side, or holds several recordings."""


class Padded(NamedTuple):
    """Recordings of similar length, padded with zeros to one length."""

    places: np.ndarray
    """[B] place of each among all recordings."""
    waveforms: Float[np.ndarray, "B S"]
    num_samples: np.ndarray
    """[B] int32, samples of each before the padding."""


def is_one(recordings: Any) -> bool:
    """Whether this is one recording rather than a list of them."""
    if isinstance(recordings, str | Path | np.ndarray):
        return True
    return (
        isinstance(recordings, tuple)
        and len(recordings) == 2
        and isinstance(recordings[0], np.ndarray)
        and isinstance(recordings[1], int | np.integer)
    )


def load_recording(
    recording: Recording, rate_hz: int, sample_rate_hz: int | None, channels: Channels = "mean"
) -> Float[np.ndarray, " S"]:
    """One recording as mono float32 samples at ``rate_hz``.

    Args:
        sample_rate_hz: Rate of arrays that come without one.
        channels: Average the channels, or take the first one.

    Raises:
        UserError: What was given is no recording, or an array has no sample rate.
        DataError: A file cannot be read, or the samples are empty, NaN or infinite.
    """
    if isinstance(recording, str | Path):
        try:
            return read_audio(recording, rate_hz, channels=channels)
        except DataError as error:
            raise DataError(f"{recording} cannot be used: {error}") from error
    if is_one(recording) and isinstance(recording, tuple):
        recording, sample_rate_hz = recording
    if not isinstance(recording, np.ndarray):
        raise UserError(f"a recording is a {type(recording).__name__}; expected {EXPECTED}")
    if recording.dtype.kind != "f" or recording.ndim not in (1, 2):
        raise UserError(
            f"a waveform has shape {recording.shape} and dtype {recording.dtype}; expected {EXPECTED} "
            "(divide int16 samples by 32768)"
        )
    if recording.ndim == 2 and len(recording) > MAX_CHANNELS:
        raise UserError(
            f"a waveform has shape {recording.shape}, which would be {len(recording)} channels; expected "
            "[channels S]: transpose an array [S channels], and give several recordings as a list"
        )
    if sample_rate_hz is None:
        raise UserError(
            f"a waveform came without its sample rate; give sample_rate_hz, or a pair (array, rate) (the model's "
            f"own rate is {rate_hz})"
        )
    if sample_rate_hz < 1:
        raise UserError(f"the sample rate of a waveform is {sample_rate_hz} Hz; it must be at least 1")
    if recording.size == 0 or not np.isfinite(recording).all():
        raise DataError("a waveform is empty or holds NaN or infinite samples")
    waveform = recording if recording.ndim == 1 else recording[0]
    if recording.ndim == 2 and channels == "mean":
        waveform = recording.mean(axis=0)
    waveform = waveform.astype(np.float32)
    if sample_rate_hz != rate_hz:
        waveform = soxr.resample(waveform, sample_rate_hz, rate_hz, "HQ")
    if len(waveform) == 0:
        raise DataError(f"a waveform of {recording.shape[-1]} samples has none left at {rate_hz} Hz")
    return waveform


def padded_batches(
    recordings: Sequence[Recording],
    rate_hz: int,
    clip_samples: int,
    *,
    sample_rate_hz: int | None,
    batch_size: int,
    num_threads: int,
    channels: Channels = "mean",
) -> Iterator[Padded]:
    """Batches of recordings of similar length, decoded by threads.

    The length of a batch is a power of two of whole clips, and its rows are a power of two, so that recordings of any
    length share a few compilations. Rows beyond the recordings repeat the first, with the same index.
    """

    def load(recording: Recording) -> np.ndarray:
        return load_recording(recording, rate_hz, sample_rate_hz, channels)

    def batch(length: int, index: list[int], waveforms: list[np.ndarray]) -> Padded:
        rows = min(_power_of_two(len(index)), max(batch_size, 1))
        index, waveforms = (
            index + index[:1] * (rows - len(index)),
            waveforms + waveforms[:1] * (rows - len(index)),
        )
        whole = np.zeros((rows, length * clip_samples), np.float32)
        for row, waveform in zip(whole, waveforms, strict=True):
            row[: len(waveform)] = waveform
        return Padded(np.asarray(index), whole, np.asarray([len(x) for x in waveforms], np.int32))

    waiting: dict[int, tuple[list[int], list[np.ndarray]]] = {}
    with ThreadPoolExecutor(num_threads) as pool:
        # Not all at once: decoded recordings are large.
        ahead = max(2 * num_threads, batch_size)
        for start in range(0, len(recordings), ahead):
            found = pool.map(load, recordings[start : start + ahead])
            for place, waveform in enumerate(found, start):
                length = _power_of_two(-(-len(waveform) // clip_samples))
                index, waveforms = waiting.setdefault(length, ([], []))
                index.append(place)
                waveforms.append(waveform)
                # As many clips at once, however long the recordings.
                if len(index) >= max(batch_size // length, 1):
                    yield batch(length, *waiting.pop(length))
    for length, (index, waveforms) in waiting.items():
        yield batch(length, index, waveforms)


def _power_of_two(count: int) -> int:
    """The smallest power of two that is not below ``count``."""
    return 1 << (count - 1).bit_length()
