"""What data sets made of audio files share: reading one as it is stored, and noticing that the files changed."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Int

from data_pipelines.datasets.captioned_audio import MAX_RECORD_SEC
from data_pipelines.decode import float_to_pcm, read_audio


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """One file as it is stored."""

    pcm: Int[np.ndarray, " S"]
    """int16, mono, at the rate that was asked for."""
    sha256: str
    """Of the file."""
    notes: Sequence[str]
    """What was changed on the way, to be counted."""


def read_recording(path: Path, sample_rate_hz: int) -> Recording:
    """The first ``MAX_RECORD_SEC`` of a file, resampled. Raises DataError, the reason, where it is no usable audio."""
    waveform = read_audio(path, sample_rate_hz, max_sec=MAX_RECORD_SEC)
    notes = []
    if soundfile.info(path).duration > MAX_RECORD_SEC:
        notes.append(f"recordings cut to their first {MAX_RECORD_SEC:.0f} s")
    if np.abs(waveform).max(initial=0.0) > 1.0:
        notes.append("recordings clipped at full scale")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Recording(pcm=float_to_pcm(waveform), sha256=sha256, notes=notes)


def digest_source(tables: Iterable[Path], folder: Path, filenames: Iterable[str]) -> str:
    """SHA-256 of the tables, and of name, size and time of every recording in ``folder``; either may be missing."""
    digest = hashlib.sha256()
    for table in tables:
        digest.update(hashlib.sha256(table.read_bytes() if table.is_file() else b"").digest())
    for filename in filenames:
        path = folder / filename
        stat = path.stat() if path.is_file() else None
        digest.update(repr((filename, stat and (stat.st_size, stat.st_mtime_ns))).encode())
    return digest.hexdigest()
