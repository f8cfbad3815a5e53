"""What every data set yields: rows, each one recording that is not read yet and what is said of it.

A recording is a file (`AudioFile`), a member of a tar (`AudioMember`) or anything else with the methods of `Audio`.
It is read when its example is made, in any thread or process: rows are small and can be pickled.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from alm_jax.errors import DataError
from data_pipelines.decode import float_to_pcm, read_blocks

LONG_SEC = 600.0
"""A longer recording is never in memory whole: it is decoded once to be checked, and once more as it is stored."""
MAX_MEMBER_BYTES = 1 << 30
"""Largest member of a tar that is read into memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """A recording that was read."""

    pcm: Int[np.ndarray, " S"]
    """int16, mono, at the rate that was asked for."""
    sha256: str
    """Of the file; '' where there is none."""
    notes: Sequence[str] = ()
    """What was changed on the way, to be counted: ``recordings clipped at full scale``."""

    @property
    def num_samples(self) -> int:
        """Its length."""
        return len(self.pcm)

    def blocks(self) -> Iterator[Int[np.ndarray, " S"]]:
        """Its samples, in one block."""
        yield self.pcm


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongRecording:
    """A recording that was decoded to its end, and is decoded again when its samples are asked for."""

    blocks: Callable[[], Iterator[Int[np.ndarray, " S"]]]
    """int16, mono, at the rate that was asked for: block after block."""
    num_samples: int
    sha256: str
    notes: Sequence[str] = ()

    @property
    def pcm(self) -> Int[np.ndarray, " S"]:
        """All of it, in memory."""
        return np.concatenate(list(self.blocks()))


@runtime_checkable
class Audio(Protocol):
    """A recording that can be read."""

    def read(
        self, sample_rate_hz: int, *, start_sec: float = 0.0, end_sec: float | None = None
    ) -> Recording | LongRecording:
        """Its samples from ``start_sec`` to ``end_sec`` (None: its end). Raises DataError, the reason, where it is no
        usable audio."""

    def content(self) -> Path | bytes:
        """Where its file is, or what is in it. Raises DataError where it cannot be got."""

    def state(self) -> object:
        """Something that changes when the recording does; costs no reading."""


@dataclasses.dataclass(frozen=True, slots=True)
class AudioFile:
    """A recording in a file of its own."""

    path: Path

    def read(
        self, sample_rate_hz: int, *, start_sec: float = 0.0, end_sec: float | None = None
    ) -> Recording | LongRecording:
        """As `Audio.read`."""
        # Hashed when it was read: a file that is not there, or no audio, has its own complaint.
        return _read(self.path, sample_rate_hz, start_sec, end_sec, lambda: hash_file(self.path))

    def content(self) -> Path:
        """As `Audio.content`."""
        return self.path

    def state(self) -> object:
        """As `Audio.state`."""
        return file_state(self.path)


@dataclasses.dataclass(frozen=True, slots=True)
class AudioMember:
    """A recording that is a member of an uncompressed tar: a range of its bytes, read into memory, never extracted."""

    path: Path
    """The tar."""
    name: str
    """Of the member."""
    offset_bytes: int
    size_bytes: int

    def content(self) -> bytes:
        """The member. Raises DataError where it is too large, or the tar ends before it does."""
        if self.size_bytes > MAX_MEMBER_BYTES:
            raise DataError(f"too large: {self.size_bytes} bytes, expected at most {MAX_MEMBER_BYTES}")
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset_bytes)
                data = file.read(self.size_bytes)
        except OSError as error:
            raise DataError(f"unreadable: {error.strerror}") from error
        if len(data) < self.size_bytes:
            raise DataError(f"truncated: the tar has {len(data)} of its {self.size_bytes} bytes")
        return data

    def read(
        self, sample_rate_hz: int, *, start_sec: float = 0.0, end_sec: float | None = None
    ) -> Recording | LongRecording:
        """As `Audio.read`."""
        return read_encoded(self.content(), sample_rate_hz, start_sec=start_sec, end_sec=end_sec)

    def state(self) -> object:
        """As `Audio.state`."""
        return file_state(self.path), self.name, self.offset_bytes


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SourceRow:
    """One clip of a data set: a recording, or a stretch of one, and what is said of it."""

    id: str
    """Unique in its data set, and the same in every build."""
    audio: Audio
    start_sec: float = 0.0
    """Where the clip begins in the recording."""
    end_sec: float | None = None
    """Where it ends; None: where the recording does."""
    captions: tuple[str, ...]
    """One or more; training draws one each time."""
    negatives: tuple[str, ...] = ()
    """Captions that are nearly right and wrong, where the data set has such."""
    labels: tuple[str, ...] = ()
    """Names of its classes: none, one, or several."""
    split: str
    licence: str = ""
    """As the data set states it; '' where it does not."""
    source: str
    """What ``rejects.jsonl`` calls the recording: a path relative to the data set, or ``shard.tar:member``."""
    place: str = ""
    """Where the row is written: ``table.csv:17``; '' where it is in no table."""
    notes: tuple[str, ...] = ()
    """What was changed on the way to this row, to be counted when its example is made."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A data set that was looked at: nothing is decoded yet."""

    rows: Sequence[SourceRow]
    """In the order in which they are kept."""
    class_names: tuple[str, ...] = ()
    """Every label of a row is one of these, and its number is its place here; empty where there are no classes."""
    signature: str = ""
    """Something that changes when the files do that the data set is made from."""
    found: tuple[str, ...] = ()
    """What was found by looking, for people: ``captions: columns caption_1 to caption_5``."""


def read_encoded(
    data: bytes, sample_rate_hz: int, *, start_sec: float = 0.0, end_sec: float | None = None
) -> Recording | LongRecording:
    """A recording whose file is in memory, as `Audio.read`."""
    return _read(data, sample_rate_hz, start_sec, end_sec, lambda: hashlib.sha256(data).hexdigest())


def _read(
    source: Path | bytes,
    sample_rate_hz: int,
    start_sec: float,
    end_sec: float | None,
    hash_source: Callable[[], str],
) -> Recording | LongRecording:
    """Decodes a recording to its end; of a long one nothing is kept but its length."""
    max_sec = None if end_sec is None else end_sec - start_sec

    def waveforms() -> Iterator[Float[np.ndarray, " S"]]:
        return read_blocks(source, sample_rate_hz, start_sec=start_sec, max_sec=max_sec)

    kept: list[Int[np.ndarray, " S"]] = []
    num_samples, is_clipped = 0, False
    for waveform in waveforms():
        num_samples += len(waveform)
        is_clipped |= bool(np.abs(waveform).max(initial=0.0) > 1.0)
        if num_samples <= LONG_SEC * sample_rate_hz:
            kept.append(float_to_pcm(waveform))
        else:
            kept.clear()
    notes = ("recordings clipped at full scale",) if is_clipped else ()
    if num_samples > LONG_SEC * sample_rate_hz:
        return LongRecording(
            blocks=lambda: map(float_to_pcm, waveforms()),
            num_samples=num_samples,
            sha256=hash_source(),
            notes=notes,
        )
    pcm = kept[0] if len(kept) == 1 else np.concatenate(kept)
    return Recording(pcm=pcm, sha256=hash_source(), notes=notes)


def hash_file(content: Path | bytes) -> str:
    """SHA-256 of a file, read in pieces so that memory does not grow with its length, or of its content."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with open(content, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_rows(rows: Iterable[SourceRow]) -> str:
    """SHA-256 of what rows say, and of the size and time of the files that their recordings lie in.

    Where the files lie is no part of it.
    """
    digest = hashlib.sha256()
    for row in rows:
        said = [
            row.id,
            row.start_sec,
            row.end_sec,
            row.captions,
            row.negatives,
            row.labels,
            row.split,
            row.licence,
        ]
        digest.update(repr([*said, row.audio.state()]).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def file_state(path: Path) -> tuple[int, int] | None:
    """Size and time of a file; None where there is none."""
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return None
    return stat.st_size, stat.st_mtime_ns
