"""Rows, which every data set yields: each is one recording, not yet read, with its captions and labels.

A recording is a file (`AudioFile`), a member of a tar (`AudioMember`) or any object with the methods of `Audio`. It
is read when its example is made, in any thread or process: rows are small and can be pickled.
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
"""Length above which a recording is never wholly in memory: it is decoded once to be checked, and again as it is
stored."""
MAX_MEMBER_BYTES = 1 << 30
"""Largest member of a tar that is read into memory, bytes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """A recording that was read."""

    pcm: Int[np.ndarray, " S"]
    """int16, mono, at the requested rate."""
    sha256: str
    """SHA-256 of the file; '' where there is none."""
    notes: Sequence[str] = ()
    """Changes made while reading, for the counts: ``recordings clipped at full scale``."""

    @property
    def num_samples(self) -> int:
        """Its length, samples."""
        return len(self.pcm)

    def blocks(self) -> Iterator[Int[np.ndarray, " S"]]:
        """Its samples, in one block."""
        yield self.pcm


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongRecording:
    """A recording that was decoded to its end once, and is decoded again when its samples are read."""

    blocks: Callable[[], Iterator[Int[np.ndarray, " S"]]]
    """int16, mono, at the requested rate: block after block."""
    num_samples: int
    sha256: str
    notes: Sequence[str] = ()

    @property
    def pcm(self) -> Int[np.ndarray, " S"]:
        """All samples, in memory."""
        return np.concatenate(list(self.blocks()))


@runtime_checkable
class Audio(Protocol):
    """A recording that can be read."""

    def read(
        self, sample_rate_hz: int, *, start_sec: float = 0.0, end_sec: float | None = None
    ) -> Recording | LongRecording:
        """Reads its samples from ``start_sec`` to ``end_sec`` (None: its end). Raises DataError with the reason where
        it is no usable audio."""

    def content(self) -> Path | bytes:
        """Returns the path of its file, or its content. Raises DataError where it cannot be read."""

    def state(self) -> object:
        """Returns a value that changes when the recording does, without reading it."""


@dataclasses.dataclass(frozen=True, slots=True)
class AudioFile:
    """A recording in its own file."""

    path: Path

    def read(
        self, sample_rate_hz: int, *, start_sec: float = 0.0, end_sec: float | None = None
    ) -> Recording | LongRecording:
        """Implements `Audio.read`."""
        # Hashed when it was read: a missing file, or one that is no audio, has its own error.
        return _read(self.path, sample_rate_hz, start_sec, end_sec, lambda: hash_file(self.path))

    def content(self) -> Path:
        """Implements `Audio.content`."""
        return self.path

    def state(self) -> object:
        """Implements `Audio.state`."""
        return file_state(self.path)


@dataclasses.dataclass(frozen=True, slots=True)
class AudioMember:
    """A recording that is a member of an uncompressed tar: a range of its bytes, read into memory, never extracted."""

    path: Path
    """Path of the tar."""
    name: str
    """Name of the member."""
    offset_bytes: int
    size_bytes: int

    def content(self) -> bytes:
        """Reads the member. Raises DataError where it is too large, or the tar is cut off inside it."""
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
        """Implements `Audio.read`."""
        return read_encoded(self.content(), sample_rate_hz, start_sec=start_sec, end_sec=end_sec)

    def state(self) -> object:
        """Implements `Audio.state`."""
        return file_state(self.path), self.name, self.offset_bytes


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SourceRow:
    """One clip of a data set: a recording, or a stretch of one, with its captions and labels."""

    id: str
    """Id, unique in its data set and the same in every build."""
    audio: Audio
    start_sec: float = 0.0
    """Start of the clip in the recording, seconds."""
    end_sec: float | None = None
    """End of the clip in the recording, seconds; None: the recording's end."""
    captions: tuple[str, ...]
    """Captions, one or more; training picks one at random each time."""
    negatives: tuple[str, ...] = ()
    """Wrong but similar captions, where the data set has them."""
    labels: tuple[str, ...] = ()
    """Names of its classes: none, one, or several."""
    split: str
    licence: str = ""
    """Licence as the data set states it; '' where it states none."""
    source: str
    """Name of the recording in ``rejects.jsonl``: a path relative to the data set, or ``shard.tar:member``."""
    place: str = ""
    """Place of the row in a table: ``table.csv:17``; '' where it is in no table."""
    notes: tuple[str, ...] = ()
    """Changes made before reading, counted when the example is made."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A data set whose rows are known; nothing is decoded yet."""

    rows: Sequence[SourceRow]
    """Rows, in the order in which they are stored."""
    class_names: tuple[str, ...] = ()
    """Class names; a label's number is its index here. Empty where there are no classes."""
    signature: str = ""
    """Value that changes when the data set's files change."""
    found: tuple[str, ...] = ()
    """Notes for people on what was found: ``captions: columns caption_1 to caption_5``."""


def read_encoded(
    data: bytes, sample_rate_hz: int, *, start_sec: float = 0.0, end_sec: float | None = None
) -> Recording | LongRecording:
    """Reads a recording whose file is in memory, like `Audio.read`."""
    return _read(data, sample_rate_hz, start_sec, end_sec, lambda: hashlib.sha256(data).hexdigest())


def _read(
    source: Path | bytes,
    sample_rate_hz: int,
    start_sec: float,
    end_sec: float | None,
    hash_source: Callable[[], str],
) -> Recording | LongRecording:
    """Decodes a recording to its end; of a long one only the length is kept."""
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
    """SHA-256 of the rows' contents, and of the size and time of the files that hold their recordings.

    The location of the files does not matter.
    """
    digest = hashlib.sha256()
    for row in rows:
        contents = [
            row.id,
            row.start_sec,
            row.end_sec,
            row.captions,
            row.negatives,
            row.labels,
            row.split,
            row.licence,
        ]
        digest.update(repr([*contents, row.audio.state()]).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def file_state(path: Path) -> tuple[int, int] | None:
    """Returns size and time of a file; None where it does not exist."""
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return None
    return stat.st_size, stat.st_mtime_ns
