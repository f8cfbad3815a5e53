"""Base class of published data sets: their published tables, joined by name with a folder of recordings."""

import abc
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from alm_jax.errors import UserError
from data_pipelines.dataset import DatasetConfig
from data_pipelines.source import AudioFile, Source, SourceRow, digest_rows
from data_pipelines.tables import Row, read_csv
from data_pipelines.tars import AUDIO_SUFFIXES


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedClip:
    """Content of a row of a published table."""

    id: str
    """Id of the clip; rows with the same id are captions of one clip."""
    names: tuple[str, ...]
    """Possible names of its recording, the most likely first; a name without an ending matches any ending."""
    captions: tuple[str, ...]
    labels: tuple[str, ...] = ()
    licence: str = ""
    """Licence of the clip; '' where it is that of the data set."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedConfig(DatasetConfig):
    """A published data set: its tables, and a folder with any number of its recordings.

    A subclass says where the tables are, which columns they have and what a row means. Clips whose recording is
    missing are left out and counted.
    """

    root: str
    """Folder that holds the published tables."""
    audio_root: str = ""
    """Folder that holds the recordings, at any depth; '' is ``root``."""

    COLUMNS: ClassVar[tuple[str, ...]]
    """Columns that the tables must have."""
    LICENCE: ClassVar[str]
    """Licence of a clip for which the tables state none."""
    GET: ClassVar[str]
    """Message: the expected files and how to get them."""

    @abc.abstractmethod
    def tables(self) -> Mapping[str, str]:
        """Returns the path of each split's table, below ``root``."""

    @abc.abstractmethod
    def published_rows(self) -> Mapping[str, int]:
        """Returns the number of rows of each split's table, as published."""

    @abc.abstractmethod
    def read_clip(self, row: Row, split: str) -> PublishedClip:
        """Parses a row. Raises DataError for an invalid one."""

    def read(self, problems: list[str] | None = None) -> Source:
        root, tables = Path(self.root).expanduser(), self.tables()
        audio_root = Path(self.audio_root).expanduser() if self.audio_root else root
        present = {split: root / name for split, name in tables.items() if (root / name).is_file()}
        if not present or not audio_root.is_dir():
            missing = audio_root if present else root / next(iter(tables.values()))
            raise UserError(f"{missing}: no such {'folder' if present else 'file'}; {self.GET}")
        recordings = find_recordings(audio_root)
        rows, found = [], []
        for split, table in present.items():
            cells = read_csv(table, columns=self.COLUMNS)
            clips = _join([self.read_clip(row, split) for row in cells])
            own = [row for clip in clips if (row := self._make_row(clip, split, audio_root, recordings))]
            rows += own
            found.append(
                f"{split}: {len(cells):,} rows of {self.published_rows()[split]:,} published; {len(clips):,} clips, "
                f"{len(own):,} recordings found, {len(clips) - len(own):,} missing"
            )
        found += [f"{split}: no {name}" for split, name in tables.items() if split not in present]
        if not rows:
            raise UserError(f"{audio_root}: no recording of the {self.title()} tables is there; {self.GET}")
        classes = sorted({name for row in rows for name in row.labels})
        return Source(rows=rows, class_names=tuple(classes), signature=digest_rows(rows), found=tuple(found))

    def _make_row(
        self, clip: PublishedClip, split: str, audio_root: Path, recordings: Mapping[str, Path]
    ) -> SourceRow | None:
        """Returns the clip with its recording; None where the recording is missing."""
        path = next((recordings[name] for name in clip.names if name in recordings), None)
        if path is None:
            return None
        return SourceRow(
            id=clip.id,
            audio=AudioFile(path),
            captions=clip.captions,
            labels=clip.labels,
            split=split,
            licence=clip.licence or self.LICENCE,
            source=path.relative_to(audio_root).as_posix(),
        )


def find_recordings(folder: Path) -> dict[str, Path]:
    """Returns every recording below a folder by its name, with and without its ending and its folder."""
    found: dict[str, Path] = {}
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            if path.suffix.lower() in AUDIO_SUFFIXES:
                for key in (name, path.stem, f"{path.parent.name}/{name}", f"{path.parent.name}/{path.stem}"):
                    found.setdefault(key, path)
    return found


def _join(clips: list[PublishedClip]) -> list[PublishedClip]:
    """Merges rows of the same clip into one, with all captions."""
    joined: dict[str, PublishedClip] = {}
    for clip in clips:
        first = joined.setdefault(clip.id, clip)
        if first is not clip:
            captions = tuple(dict.fromkeys((*first.captions, *clip.captions)))
            joined[clip.id] = dataclasses.replace(first, captions=captions)
    return list(joined.values())
