"""Webdataset tars: members whose names are equal up to the first dot are one clip. Nothing is ever extracted.

Text members are read into memory, up to a size limit, and recordings are read when needed (``source.AudioMember``).
Names like ``../x`` are never used as paths; links, devices and folders are skipped.
"""

import collections
import dataclasses
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from alm_jax.errors import DataError
from data_pipelines.source import AudioMember
from data_pipelines.tables import Row, parse_json_object

AUDIO_SUFFIXES = (".flac", ".wav", ".mp3", ".ogg", ".opus", ".oga", ".aif", ".aiff", ".au", ".w64", ".rf64")
"""File endings of recordings, in any case."""
TEXT_SUFFIXES = (".txt", ".json", ".cls")
"""File endings of a clip's texts: captions, columns, a class."""
MAX_TEXT_BYTES = 1 << 20
"""Largest text that is read, bytes."""
MAX_MEMBERS = 2_000_000
"""Maximum number of members of one tar."""
_COMPRESSED = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ", "zstd": b"\x28\xb5\x2f\xfd"}


@dataclasses.dataclass
class Unused:
    """What was skipped, for people: counts by reason, and the first names."""

    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Counts one more."""
        self.counts[reason] += 1
        self.examples.setdefault(reason, name)

    def describe(self) -> tuple[str, ...]:
        """Returns a line for each reason."""
        return tuple(
            f"{count:,} {reason}, such as {self.examples[reason]}" for reason, count in self.counts.items()
        )


def read_tar(path: Path, unused: Unused) -> Iterator[Row]:
    """Yields the clips of a tar, in the order of their first members: a row each, its column ``audio`` the recording.

    Raises DataError for a tar that is compressed, damaged or cut off, or whose texts cannot be read.
    """
    clips: dict[str, dict[str, Any]] = {}
    for member in _members(path):
        stem, suffix = _split_name(member.name)
        if not member.isreg() or member.issparse():
            if not member.isdir():
                unused.add("members of tars that are links, devices or sparse", f"{path.name}:{member.name}")
            continue
        if suffix not in AUDIO_SUFFIXES + TEXT_SUFFIXES:
            unused.add("members of tars with another ending", f"{path.name}:{member.name}")
            continue
        clip = clips.setdefault(stem, {})
        kind = "audio" if suffix in AUDIO_SUFFIXES else suffix
        if kind in clip:
            raise DataError(
                f"{path}: two members are the {kind.lstrip('.')} of clip {stem!r}: {member.name!r} is the second"
            )
        clip[kind] = AudioMember(path, member.name, member.offset_data, member.size)
    for number, (stem, clip) in enumerate(clips.items(), start=1):
        if "audio" not in clip:
            unused.add("texts in tars without a recording", f"{path.name}:{stem}")
        elif len(clip) == 1:
            unused.add("recordings in tars without a text", f"{path.name}:{clip['audio'].name}")
        else:
            yield Row(path, number, _cells(clip))


def _cells(clip: dict[str, Any]) -> dict[str, Any]:
    """Returns the columns of a clip: those of its JSON, ``caption`` from its text, ``label`` from its class."""
    cells: dict[str, Any] = {}
    for kind in TEXT_SUFFIXES:
        if kind in clip:
            member = clip[kind]
            if member.size_bytes > MAX_TEXT_BYTES:
                raise DataError(
                    f"{member.path}: {member.name} has {member.size_bytes} bytes, a text has at most {MAX_TEXT_BYTES}"
                )
            cells |= read_text_cells(kind, member.content(), f"{member.path}:{member.name}")
    return cells | {"audio": clip["audio"]}


def read_text_cells(suffix: str, content: bytes, where: str) -> dict[str, Any]:
    """Returns the columns of a text beside a recording: JSON has its own columns, ``.txt`` has captions, one a
    line."""
    if suffix == ".json":
        return parse_json_object(content, where)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 (byte {error.start}); save the text as UTF-8") from error
    if suffix == ".cls":
        return {"label": text.strip()}
    return {"caption": [line for line in text.splitlines() if line.strip()]}


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Yields the headers of an uncompressed tar, in order, without keeping them in memory."""
    try:
        with open(path, "rb") as file:
            head = file.read(6)
        for name, magic in _COMPRESSED.items():
            if head.startswith(magic):
                raise DataError(
                    f"{path}: compressed by {name}, so that no member can be read alone; decompress it"
                )
        with tarfile.open(path, "r:") as tar:
            end, size, count = -1, path.stat().st_size, 0
            while (member := tar.next()) is not None:
                if (
                    member.offset_data <= end
                    or member.offset_data + max(member.size, 0) > size
                    or member.size < 0
                ):
                    raise DataError(
                        f"{path}: damaged or cut off: its member {member.name[:200]!r} is incomplete"
                    )
                end, count = member.offset_data, count + 1
                if count > MAX_MEMBERS:
                    raise DataError(f"{path}: more than {MAX_MEMBERS:,} members; make several tars of it")
                tar.members = []  # type: ignore[attr-defined]  # else it keeps every header
                yield member
            # tarfile mistakes a damaged header, or the end of the file, for the end of the tar.
            with open(path, "rb") as file:
                file.seek(tar.offset)
                if file.read(512).strip(b"\0") or file.tell() < tar.offset + 512:
                    raise DataError(f"{path}: damaged or cut off at byte {tar.offset}: there is no end mark")
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError, RecursionError) as error:
        raise DataError(f"{path}: damaged or cut off, or no tar: {error}") from error


def _split_name(name: str) -> tuple[str, str]:
    """Splits a member's name: ``a/b.c.FLAC`` gives the clip ``a/b`` and ``.flac``."""
    path = PurePosixPath(name.encode("utf-8", "replace").decode())
    stem = path.name.partition(".")[0]
    return str(path.parent / stem), PurePosixPath(path.name).suffix.lower()
