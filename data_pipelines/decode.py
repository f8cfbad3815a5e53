"""From an audio file to a mono waveform: libsndfile decodes, soxr resamples. Needs neither TensorFlow nor JAX.

Scaling is libsndfile's for every subtype: full scale is 1.0, so int16 is value / 32768, u8 is (value - 128) / 128,
and float files are used unchanged. Channels are averaged, unless the first one is asked for.
"""

import errno
import io
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Int

from alm_jax.errors import DataError
from data_pipelines.containers import check_header_size, check_whole, describe_unreadable

MIN_RATE_HZ = 1_000
MAX_RATE_HZ = 768_000
MAX_SOURCE_SEC = 360_000
Channels: TypeAlias = Literal["mean", "first"]
"""What becomes of a file of several channels: their mean, or the first one, which the loaders of AST, AudioMAE and LTU
take."""
BLOCK_SEC = 120
"""Longest stretch of a recording that is decoded at once, seconds."""
_LEAD_IN_FRAMES = 1 << 14  # MP3 frames use bits of earlier frames: decoding starts this much earlier


def read_audio(
    source: str | Path | bytes,
    sample_rate_hz: int,
    *,
    start_sec: float = 0.0,
    max_sec: float | None = None,
    channels: Channels = "mean",
) -> Float[np.ndarray, " S"]:
    """Reads a recording, or ``max_sec`` of it from ``start_sec``: float32, mono, ``sample_rate_hz``.

    ``source`` is a path, or the content of a file. Only the window is decoded, so memory is bounded by ``max_sec``
    however long the file is. Resampling is soxr's HQ; a file that already has the rate is not resampled.

    Raises:
      DataError, with the reason only, since the caller knows the path: missing, empty, header-only, not audio,
        corrupt, truncated, NaN or Inf samples, a sampling rate outside 1 kHz to 768 kHz, a length over
        100 hours, ``start_sec`` at or after the end, or so short that resampling leaves no sample.
    """
    blocks = list(
        read_blocks(source, sample_rate_hz, start_sec=start_sec, max_sec=max_sec, channels=channels)
    )
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def read_blocks(
    source: str | Path | bytes,
    sample_rate_hz: int,
    *,
    start_sec: float = 0.0,
    max_sec: float | None = None,
    channels: Channels = "mean",
) -> Iterator[Float[np.ndarray, " S"]]:
    """Reads like `read_audio`, block after block of up to `BLOCK_SEC`, so that memory does not grow with the
    recording."""
    source = source if isinstance(source, bytes) else Path(source)
    num_decoded, num_made, rate_hz = 0, 0, sample_rate_hz
    try:
        _check_there(source)
        check_whole(source)
        with soundfile.SoundFile(as_file(source)) as file:
            rate_hz = file.samplerate
            resampler = None
            for block, is_last in _decode_blocks(file, start_sec, max_sec, channels):
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
    """Length in seconds of a recording that `read_audio` has read, by its header."""
    with soundfile.SoundFile(as_file(source)) as file:
        return float(file.frames / file.samplerate)


def as_file(source: str | Path | bytes) -> str | Path | io.BytesIO:
    """Returns what soundfile opens: the path, or an in-memory file of the content."""
    return _Memory(source) if isinstance(source, bytes) else source


class _Memory(io.BytesIO):
    """An in-memory file that ignores seeks to impossible places, which damaged headers cause."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def _check_there(source: Path | bytes) -> None:
    """Raises DataError where the file does not exist or is empty; OSError where the system cannot tell."""
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
                    f"missing: it is a link to {source.readlink()}, which does not exist"
                ) from error
            raise DataError("missing: there is no such file") from error
        except ValueError as error:
            raise DataError("missing: a path with a zero byte") from error
        if not stat.S_ISREG(status.st_mode):
            raise DataError("missing: it is a folder or a device, not a file")
        size = status.st_size
    if size == 0:
        raise DataError("empty: the file has 0 bytes")


def float_to_pcm(waveform: Float[np.ndarray, " S"]) -> Int[np.ndarray, " S"]:
    """Converts to int16 PCM, ``round(32768 x)`` clipped to [-32768, 32767]; exact for audio that came from int16."""
    return np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)


def _decode_blocks(
    file: soundfile.SoundFile, start_sec: float, max_sec: float | None, channels: Channels
) -> Iterator[tuple[Float[np.ndarray, " S"], bool]]:
    """Yields float32 mono samples of the window at the file's own rate, and whether a block is the last."""
    rate_hz = file.samplerate
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise DataError(f"absurd sampling rate: {rate_hz} Hz, expected {MIN_RATE_HZ} to {MAX_RATE_HZ}")
    check_header_size(file.extra_info)
    if file.frames == 0:
        raise DataError("empty: it has a header and no samples")
    if file.frames > MAX_SOURCE_SEC * rate_hz:
        raise DataError("absurd length: its header states more than 100 hours, or no length")
    start = round(start_sec * rate_hz)
    if start >= file.frames:
        raise DataError(f"too short: it lasts {file.frames / rate_hz:.3f} s, wanted from {start_sec:.3f} s")
    wanted = file.frames - start if max_sec is None else min(file.frames - start, round(max_sec * rate_hz))
    end, block_frames = start + wanted, BLOCK_SEC * rate_hz
    for first in range(start, end, block_frames):
        size = min(block_frames, end - first)
        # soundfile seeks after each read, and libsndfile's MP3 decoder loses its position when it seeks.
        seeks = first and (first == start or file.format == "MP3")
        lead_in = min(first, _LEAD_IN_FRAMES) if seeks else 0
        if seeks:
            file.seek(first - lead_in)
        yield _read_frames(file, lead_in, size, channels), first + size == end


def _read_frames(
    file: soundfile.SoundFile, lead_in: int, size: int, channels: Channels
) -> Float[np.ndarray, " S"]:
    """Returns one channel of the next ``size`` samples, after ``lead_in`` that are decoded and dropped."""
    try:
        frames = file.read(lead_in + size, dtype="float32", always_2d=True)[lead_in:]
    except soundfile.SoundFileError as error:
        raise DataError("corrupt or truncated: the decoder fails in the middle") from error
    if len(frames) < size:
        raise DataError(f"truncated: {len(frames)} samples decoded, its header states {size}")
    with np.errstate(invalid="ignore", over="ignore"):  # such samples are refused below
        waveform = frames.mean(axis=1) if channels == "mean" else frames[:, 0]
    num_bad = waveform.size - int(np.isfinite(waveform).sum())
    if num_bad:
        raise DataError(f"not finite: {num_bad} of {waveform.size} samples are NaN or Inf")
    return waveform
