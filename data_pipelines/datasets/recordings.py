"""Your own recordings with captions or classes: a table, a folder, tars, or Hugging Face's layouts."""

import collections
import dataclasses
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from alm_jax.errors import DataError
from data_pipelines.captions import normalise_caption
from data_pipelines.columns import (
    ColumnsConfig,
    describe_columns,
    find_columns,
    read_seconds,
    read_text,
    read_texts,
)
from data_pipelines.dataset import DatasetConfig, require
from data_pipelines.layouts import Part, find_layout, split_of
from data_pipelines.paths import resolve_inside
from data_pipelines.source import Audio, AudioFile, AudioMember, Source, SourceRow, digest_rows
from data_pipelines.tables import Row

_LOOKED_AT = 1000
"""Number of rows whose columns are examined: in JSON each row may have its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordingsConfig(DatasetConfig):
    """Your own recordings with captions, classes, or both.

    ``path`` is a table (CSV, TSV, JSON Lines, Parquet), a folder of recordings with ``NAME.txt`` (a caption a line)
    or ``NAME.json`` (columns) beside each, a folder as ``datasets`` lays it out (``metadata.csv`` or
    ``metadata.jsonl``, or Parquet tables), webdataset tars, or a folder for each class. Splits are those of the split
    column, or of the names of files and folders (``train/``, ``test-00000-of-00002.parquet``), else ``train`` and
    ``test`` by a hash of the id. Rows of the same stretch of the same recording are one clip with several captions.
    """

    path: str
    """A file, a folder, or a pattern such as ``'shards/*.tar'``."""
    root: str = ""
    """Folder that paths in a table are relative to; '' is the folder of the table."""
    columns: ColumnsConfig = ColumnsConfig()
    """Names of the columns where they differ from the usual ones."""
    label_separator: str = ""
    """Separator between several classes in one cell, such as ``,``; '' makes every cell one class."""
    templates: tuple[str, ...] = ("This is a sound of {}.",)
    """Templates of the captions of a clip that has classes and no caption; ``{}`` is the class name."""
    licence: str = ""
    """Licence of clips without their own."""
    test_fraction: float = 0.1
    """Fraction of the clips in the ``test`` split, chosen by a hash of the id, where nothing names a split."""
    allow_outside_root: bool = False
    """Whether paths may be absolute, or lead out of the root by ``..`` or a link: for tables that you trust."""

    def __post_init__(self) -> None:
        require(self.path != "", "dataset.path", self.path, "a table, a folder, or a pattern of tars")
        require(0 < self.test_fraction < 1, "dataset.test_fraction", self.test_fraction, "between 0 and 1")
        good = self.templates and all(template.count("{}") == 1 for template in self.templates)
        require(bool(good), "dataset.templates", self.templates, "at least one, each with exactly one {}")

    def short_name(self) -> str:
        return re.sub(r"[^A-Za-z0-9]+", "-", Path(self.path).stem).strip("-")[:40] or "recordings"

    def read(self, problems: list[str] | None = None) -> Source:
        layout = find_layout(self.path, self.root)
        table = list(layout.rows())
        if not table:
            passed = "; ".join(layout.unused.describe())
            raise DataError(f"{self.path}: {layout.kind} without a row. {passed}".rstrip(". "))
        known = dict.fromkeys(name for _, row in table[:_LOOKED_AT] for name in row.cells)
        columns = find_columns(self.columns, table[0][1], list(known))
        clips = _join(list(self._read_clips(table, columns, problems)))
        if not clips:
            raise DataError(f"{self.path}: none of its {len(table):,} rows can be used")
        ids, said_ids = _make_ids(clips, has_column=bool(columns.id))
        splits, said_splits = self._make_splits(ids, [clip.split for clip in clips])
        rows = [
            dataclasses.replace(clip.row, id=name, split=split)
            for clip, name, split in zip(clips, ids, splits, strict=True)
        ]
        counts = collections.Counter(splits)
        lines = [
            f"layout: {layout.kind}, {len(table):,} rows",
            *describe_columns(columns),
            f"ids: {said_ids}",
            f"splits: {', '.join(f'{name} {count:,}' for name, count in sorted(counts.items()))} ({said_splits})",
        ]
        if len(clips) < len(table):
            lines.append(
                f"{len(table):,} rows are {len(clips):,} clips: rows of one recording are its captions"
            )
        names = {name for row in rows for name in row.labels}
        return Source(
            rows=rows,
            class_names=tuple(
                sorted(names, key=lambda name: (name.isdecimal(), len(name) * name.isdecimal(), name))
            ),
            signature=digest_rows(rows),
            found=(*lines, *layout.unused.describe()),
        )

    def _read_clips(
        self, table: list[tuple[Part, Row]], columns: ColumnsConfig, problems: list[str] | None
    ) -> Iterator["_Clip"]:
        for part, row in table:
            try:
                yield self._read_clip(part, row, columns)
            except DataError as error:
                if problems is None:
                    raise
                problems.append(str(error))

    def _read_clip(self, part: Part, row: Row, columns: ColumnsConfig) -> "_Clip":
        audio, name, source = self._find_audio(part, row, columns.audio)
        captions = tuple(text for column in columns.captions for text in read_texts(row, column))
        labels = read_texts(row, columns.labels, self.label_separator) if columns.labels else []
        classes = tuple(dict.fromkeys(filter(None, map(normalise_caption, labels))))
        if not any(map(str.strip, captions)) and classes:
            spoken = " and ".join(name.replace("_", " ") for name in classes)
            captions = tuple(template.format(spoken) for template in self.templates)
        start, end = read_seconds(row, columns.start_sec) or 0.0, read_seconds(row, columns.end_sec)
        if end is not None and end <= start:
            raise row.fail(columns.end_sec, f"more than the start, {start:g} s")
        clip = SourceRow(
            id=read_text(row, columns.id),
            audio=audio,
            start_sec=start,
            end_sec=end,
            captions=captions,
            labels=classes,
            split="",
            licence=read_text(row, columns.licence) or self.licence,
            source=source,
            place=f"{row.path}:{row.line}",
        )
        if columns.id and not clip.id:
            raise row.fail(columns.id, "a value")
        split = _read_split(row, columns.split) or part.split
        if not split and isinstance(audio, AudioFile) and part.path.is_dir():
            split = split_of(PurePosixPath(name).parent)
        return _Clip(clip, name, split)

    def _find_audio(self, part: Part, row: Row, column: str) -> tuple[Audio, str, str]:
        """Returns the recording of a row, its name, and its place."""
        value = row.cells.get(column)
        place = self._relative(part.path, part.path.name)
        if isinstance(value, AudioMember):
            return value, value.name, f"{place}:{value.name}"
        if isinstance(value, Audio):
            stored = row.cells.get(f"{column}.path")
            number = f"{part.path.stem.replace('.', '_')}-{row.line:06d}"
            return value, stored if isinstance(stored, str) and stored else number, f"{place}:{row.line}"
        if not isinstance(value, str) or not value.strip():
            raise row.fail(column, f"a path inside {part.root}")
        if self.allow_outside_root:
            return AudioFile(part.root / value), value, value
        path = resolve_inside(part.root, value, row, column)
        name = self._relative(path, value)
        return AudioFile(path), name, name

    def _relative(self, path: Path, other: str) -> str:
        """Returns a path relative to the data set's folder, or ``other`` where it is not below it."""
        base = Path(self.root).expanduser() if self.root else self._folder()
        return path.relative_to(base).as_posix() if path.is_relative_to(base) else other

    def _folder(self) -> Path:
        path = Path(self.path).expanduser()
        return path if path.is_dir() else path.parent

    def _make_splits(self, ids: list[str], said: list[str]) -> tuple[list[str], str]:
        """Returns a split for each clip, and how it was found."""
        if all(said):
            return said, "as the data set says"
        if any(said):
            missing = said.index("")
            raise DataError(
                f"{self.path}: {sum(map(bool, said)):,} of {len(said):,} clips have a split and others have none, "
                f"such as {ids[missing]!r}; give each one, or none"
            )
        if len(ids) == 1:
            raise DataError(f"{self.path}: it has one clip; two are needed, one of them for testing")
        places = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 for name in ids]
        # Where few clips would all be in one split, the last clip is moved to the other.
        least, limit = min(places), min(self.test_fraction, max(places))
        splits = ["test" if place < limit or place == least else "train" for place in places]
        return splits, f"by a hash of the id, {self.test_fraction:.0%} for testing, as nothing names a split"


def _read_split(row: Row, column: str) -> str:
    """Returns the split of a row; '' where there is no column, or it is empty."""
    name = re.sub(r"[-. ]", "_", read_text(row, column))
    if name and (not re.fullmatch(r"\w{1,64}", name, re.ASCII) or name == "all"):
        raise row.fail(column, "the name of a split, such as train or test")
    return name


@dataclasses.dataclass(frozen=True)
class _Clip:
    """A row that was read."""

    row: SourceRow
    """Clip of the row; its id is '' where no column has it, and so is its split."""
    name: str
    """Name of the recording in its tar or folder."""
    split: str
    """Place of the row in its table; ''."""


def _join(clips: list[_Clip]) -> list[_Clip]:
    """Merges rows without an id that are the same stretch of one recording into one clip with all captions."""
    joined: dict[object, _Clip] = {}
    for number, clip in enumerate(clips):
        row = clip.row
        first = joined.setdefault(number if row.id else (row.audio, row.start_sec, row.end_sec), clip)
        if first is clip:
            continue
        if clip.split != first.split:
            raise DataError(
                f"{row.place}: {row.source} is in split {first.split!r} and in {clip.split!r}; a clip is in one"
            )
        captions = tuple(dict.fromkeys((*first.row.captions, *row.captions)))
        labels = tuple(dict.fromkeys((*first.row.labels, *row.labels)))
        both = dataclasses.replace(first.row, captions=captions, labels=labels)
        joined[row.audio, row.start_sec, row.end_sec] = dataclasses.replace(first, row=both)
    return list(joined.values())


def _make_ids(clips: list[_Clip], *, has_column: bool) -> tuple[list[str], str]:
    """Returns a different name for each clip, and how it was found."""
    if has_column:
        tried = {"as the column says": [clip.row.id for clip in clips]}
    else:
        paths = [PurePosixPath(clip.name) for clip in clips]
        places = [PurePosixPath(clip.row.source) for clip in clips]
        tried = {
            "file names": [path.stem for path in paths],
            "paths, since file names come again": [str(path.with_name(path.stem)) for path in paths],
            "places, since paths come again": [str(path.with_name(path.stem)) for path in places],
        }
    for said, names in tried.items():
        ids = names if has_column else [_at(name, clip.row) for name, clip in zip(names, clips, strict=True)]
        if len(set(ids)) == len(ids):
            return ids, said
    twice = next(name for name, count in collections.Counter(ids).items() if count > 1)
    first, second = [clip.row.source for clip, name in zip(clips, ids, strict=True) if name == twice][:2]
    raise DataError(f"the id {twice[:200]!r} is that of {first} and of {second}; every clip needs its own id")


def _at(name: str, clip: SourceRow) -> str:
    """Returns a file's name, with the clip's start in it where that is not 0."""
    return name if clip.start_sec == 0 and clip.end_sec is None else f"{name}@{clip.start_sec:g}"
