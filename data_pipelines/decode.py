"""From an audio file to a mono waveform: libsndfile decodes, soxr resamples. Neither TensorFlow nor JAX.

One rule of scale for every subtype, libsndfile's: full scale is 1.0, so int16 is value / 32768, u8 is
(value - 128) / 128, and float files are taken as they are. Channels are averaged.
"""

import errno
import io
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Int

from alm_jax.errors import DataError
from data_pipelines.containers import check_header_size, check_whole, describe_unreadable

MIN_RATE_HZ = 1_000
MAX_RATE_HZ = 768_000
MAX_SOURCE_SEC = 360_000
BLOCK_SEC = 120
"""Longest stretch of a recording that is decoded at once, seconds."""
_LEAD_IN_FRAMES = 1 << 14  # MP3 frames borrow bits from the ones before: decoding begins this much earlier


def read_audio(
    source: str | Path | bytes, sample_rate_hz: int, *, start_sec: float = 0.0, max_sec: float | None = None
) -> Float[np.ndarray, " S"]:
    """A recording, or ``max_sec`` of it from ``start_sec``: float32, mono, ``sample_rate_hz``.

    ``source`` is a path, or the content of a file. Only the window is decoded, so memory is bounded by ``max_sec``
    however long the file is. Resampling is soxr's HQ; a file that has the rate already is returned as it is decoded.

    Raises:
      DataError: the reason alone (the caller knows the path): missing, empty, header-only, not audio,
        corrupt, truncated, NaN or Inf samples, a sampling rate outside 1 kHz to 768 kHz, a length over
        100 hours, ``start_sec`` at or after the end, or so short that resampling leaves no sample.
    """
    blocks = list(read_blocks(source, sample_rate_hz, start_sec=start_sec, max_sec=max_sec))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def read_blocks(
    source: str | Path | bytes, sample_rate_hz: int, *, start_sec: float = 0.0, max_sec: float | None = None
) -> Iterator[Float[np.ndarray, " S"]]:
    """As `read_audio`, block after block of up to `BLOCK_SEC`: memory does not grow with the recording."""
    source = source if isinstance(source, bytes) else Path(source)
    num_decoded, num_made, rate_hz = 0, 0, sample_rate_hz
    try:
        _check_there(source)
        check_whole(source)
        with soundfile.SoundFile(as_file(source)) as file:
            rate_hz = file.samplerate
            resampler = None
            for block, is_last in _decode_blocks(file, start_sec, max_sec):
                num_decoded += len(block)
                if rate_hz != sample_rate_hz:
                    resampler = resampler or soxr.ResampleStream(
                        rate_hz, sample_rate_hz, 1, "float32", quality="HQ"
                    )
                    block = resampler.resample_chunk(block, last=is_last)
                num_made += len(block)
                yield block
    except soundfile.SoundFileError as error:
        raise DataError(describe_unreadable(source)) from error
    except OSError as error:
        raise DataError(f"unreadable: {error.strerror}") from error
    if not num_made:
        raise DataError(f"too short: {num_decoded} samples at {rate_hz} Hz leave none at {sample_rate_hz} Hz")


def duration_sec(source: str | Path | bytes) -> float:
    """Seconds of a recording that `read_audio` has read, by its header."""
    with soundfile.SoundFile(as_file(source)) as file:
        return float(file.frames / file.samplerate)


def as_file(source: str | Path | bytes) -> str | Path | io.BytesIO:
    """What soundfile opens: the path, or a file in memory that has the content."""
    return _Memory(source) if isinstance(source, bytes) else source


class _Memory(io.BytesIO):
    """A file in memory that stays where it is when a damaged header sends the decoder to a place that cannot be."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def _check_there(source: Path | bytes) -> None:
    """Raises DataError where there is no file, or nothing in it; OSError where the system refuses to say."""
    if isinstance(source, bytes):
        size = len(source)
    else:
        try:
            status = source.stat()
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise DataError("missing: it is a link that leads to itself") from error
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            if source.is_symlink():
                raise DataError(
                    f"missing: it is a link to {source.readlink()}, which is not there"
                ) from error
            raise DataError("missing: there is no such file") from error
        except ValueError as error:
            raise DataError("missing: a path with a zero byte") from error
        if not stat.S_ISREG(status.st_mode):
            raise DataError("missing: there is no such file, but a folder or a device")
        size = status.st_size
    if size == 0:
        raise DataError("empty: the file has 0 bytes")


def float_to_pcm(waveform: Float[np.ndarray, " S"]) -> Int[np.ndarray, " S"]:
    """int16 PCM, ``round(32768 x)`` clipped to [-32768, 32767]; exact for what came from int16."""
    return np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)


def _decode_blocks(
    file: soundfile.SoundFile, start_sec: float, max_sec: float | None
) -> Iterator[tuple[Float[np.ndarray, " S"], bool]]:
    """Float32 mono samples of the window, at the file's own rate, and whether a block is the last."""
    rate_hz = file.samplerate
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise DataError(f"absurd sampling rate: {rate_hz} Hz, expected {MIN_RATE_HZ} to {MAX_RATE_HZ}")
    check_header_size(file.extra_info)
    if file.frames == 0:
        raise DataError("empty: it has a header and no samples")
    if file.frames > MAX_SOURCE_SEC * rate_hz:
        raise DataError("absurd length: its header says more than 100 hours, or that it does not know")
    start = round(start_sec * rate_hz)
    if start >= file.frames:
        raise DataError(f"too short: it lasts {file.frames / rate_hz:.3f} s, wanted from {start_sec:.3f} s")
    wanted = file.frames - start if max_sec is None else min(file.frames - start, round(max_sec * rate_hz))
    end, block_frames = start + wanted, BLOCK_SEC * rate_hz
    for first in range(start, end, block_frames):
        size = min(block_frames, end - first)
        # soundfile seeks after each read, and libsndfile's MP3 decoder loses its place when it seeks.
        seeks = first and (first == start or file.format == "MP3")
        lead_in = min(first, _LEAD_IN_FRAMES) if seeks else 0
        if seeks:
            file.seek(first - lead_in)
        yield _read_frames(file, lead_in, size), first + size == end


def _read_frames(file: soundfile.SoundFile, lead_in: int, size: int) -> Float[np.ndarray, " S"]:
    """The next ``size`` samples after ``lead_in`` of them, channels averaged."""
    try:
        frames = file.read(lead_in + size, dtype="float32", always_2d=True)[lead_in:]
    except soundfile.SoundFileError as error:
        raise DataError("corrupt or truncated: the decoder fails in the middle") from error
    if len(frames) < size:
        raise DataError(f"truncated: {len(frames)} samples decoded, its header says {size}")
    with np.errstate(invalid="ignore", over="ignore"):  # such samples are refused below
        waveform = frames.mean(axis=1)
    num_bad = waveform.size - int(np.isfinite(waveform).sum())
    if num_bad:
        raise DataError(f"not finite: {num_bad} of {waveform.size} samples are NaN or Inf")
    return waveform
