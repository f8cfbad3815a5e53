"""Your own recordings with captions or classes: a table, a folder, tars, or Hugging Face's layouts."""

import dataclasses
import functools
import itertools
import re
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
from data_pipelines.row_store import RowStore
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
        table = layout.rows()
        looked_at = list(itertools.islice(table, _LOOKED_AT))
        if not looked_at:
            passed = "; ".join(layout.unused.describe())
            raise DataError(f"{self.path}: {layout.kind} without a row. {passed}".rstrip(". "))
        known = dict.fromkeys(name for _, row in looked_at for name in row.cells)
        columns = find_columns(self.columns, looked_at[0][1], list(known))
        rows, num_rows, classes = RowStore(), 0, set[str]()
        for part, row in itertools.chain(looked_at, table):
            num_rows += 1
            try:
                clip, names = self._read_clip(part, row, columns)
            except DataError as error:
                if problems is None:
                    raise
                problems.append(str(error))
                continue
            classes.update(clip.labels)
            _add(rows, clip, names)
        if not len(rows):
            raise DataError(f"{self.path}: none of its {num_rows:,} rows can be used")
        said_ids = _make_ids(rows, has_column=bool(columns.id))
        said_splits = self._make_splits(rows)
        counts = ", ".join(f"{name} {count:,}" for name, count in rows.count_splits().items())
        lines = [
            f"layout: {layout.kind}, {num_rows:,} rows",
            *describe_columns(columns),
            f"ids: {said_ids}",
            f"splits: {counts} ({said_splits})",
        ]
        if len(rows) < num_rows:
            lines.append(f"{num_rows:,} rows are {len(rows):,} clips: rows of one recording are its captions")
        return Source(
            rows=rows,
            class_names=tuple(
                sorted(classes, key=lambda name: (name.isdecimal(), len(name) * name.isdecimal(), name))
            ),
            signature=digest_rows(rows),
            found=(*lines, *layout.unused.describe()),
        )

    def _read_clip(self, part: Part, row: Row, columns: ColumnsConfig) -> tuple[SourceRow, tuple[str, ...]]:
        """Returns the clip of a row, with the id and the split that it names ('' for none), and candidates for its
        name."""
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
        split = _read_split(row, columns.split) or part.split
        if not split and isinstance(audio, AudioFile) and part.path.is_dir():
            split = split_of(PurePosixPath(name).parent)
        clip = SourceRow(
            id=read_text(row, columns.id),
            audio=audio,
            start_sec=start,
            end_sec=end,
            captions=captions,
            labels=classes,
            split=split,
            licence=read_text(row, columns.licence) or self.licence,
            source=source,
            place=f"{row.path}:{row.line}",
        )
        if columns.id and not clip.id:
            raise row.fail(columns.id, "a value")
        return clip, () if columns.id else _names(clip, name)

    def _find_audio(self, part: Part, row: Row, column: str) -> tuple[Audio, str, str]:
        """Returns the recording of a row, its name, and its place."""
        value = row.cells.get(column)
        place = self._relative(part.path, part.path.name)
        if isinstance(value, AudioMember):
            return value, value.name, f"{place}:{value.name}"
        if not isinstance(value, str) and isinstance(value, Audio):
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
        try:
            return path.relative_to(self._folder).as_posix()
        except ValueError:
            return other

    @functools.cached_property
    def _folder(self) -> Path:
        """Folder that names of recordings are relative to."""
        path = Path(self.root or self.path).expanduser()
        return path if self.root or path.is_dir() else path.parent

    def _make_splits(self, rows: RowStore) -> str:
        """Gives every clip a split; returns how the splits were found."""
        missing, first = rows.without_split()
        if not missing:
            return "as the data set says"
        if missing < len(rows):
            raise DataError(
                f"{self.path}: {len(rows) - missing:,} of {len(rows):,} clips have a split and others have none, "
                f"such as {first!r}; give each one, or none"
            )
        if len(rows) == 1:
            raise DataError(f"{self.path}: it has one clip; two are needed, one of them for testing")
        rows.split_by_hash(self.test_fraction)
        return f"by a hash of the id, {self.test_fraction:.0%} for testing, as nothing names a split"


def _read_split(row: Row, column: str) -> str:
    """Returns the split of a row; '' where there is no column, or it is empty."""
    name = re.sub(r"[-. ]", "_", read_text(row, column))
    if name and (not re.fullmatch(r"\w{1,64}", name, re.ASCII) or name == "all"):
        raise row.fail(column, "the name of a split, such as train or test")
    return name


_SCHEMES = (
    "file names",
    "paths, since file names come again",
    "places, since paths come again",
)
"""Schemes that name clips without an id; the first that gives every clip a different name is used."""


def _names(clip: SourceRow, name: str) -> tuple[str, ...]:
    """Returns the name of a clip by each of `_SCHEMES`; ``name`` is that of its recording in its tar or folder."""
    path, place = PurePosixPath(name), PurePosixPath(clip.source)
    names = path.stem, str(path.with_name(path.stem)), str(place.with_name(place.stem))
    # The name of a file may have bytes that are not text.
    return tuple(_at(own, clip).encode("utf-8", "replace").decode() for own in names)


def _add(rows: RowStore, clip: SourceRow, names: tuple[str, ...]) -> None:
    """Adds a clip, or adds its captions to the clip of the same stretch of the same recording, if neither has an
    id."""
    found = None if clip.id else rows.find_same(clip)
    if found is None:
        rows.add(clip, names)
        return
    number, first = found
    if clip.split != first.split:
        raise DataError(
            f"{clip.place}: {clip.source} is in split {first.split!r} and in {clip.split!r}; a clip is in one"
        )
    captions = tuple(dict.fromkeys((*first.captions, *clip.captions)))
    labels = tuple(dict.fromkeys((*first.labels, *clip.labels)))
    rows.replace(number, dataclasses.replace(first, captions=captions, labels=labels))


def _make_ids(rows: RowStore, *, has_column: bool) -> str:
    """Gives every clip a different name; returns how the names were found."""
    for choice, said in enumerate(("as the column says",) if has_column else _SCHEMES):
        if not has_column:
            rows.name_rows(choice)
        repeated = rows.repeated_id()
        if repeated is None:
            return said
    assert repeated is not None
    name, first, second = repeated
    raise DataError(
        f"the id {name[:200]!r} is that of {first.source} and of {second.source}; every clip needs its own id"
    )


def _at(name: str, clip: SourceRow) -> str:
    """Returns a file's name, with the clip's start in it where that is not 0."""
    return name if clip.start_sec == 0 and clip.end_sec is None else f"{name}@{clip.start_sec:g}"
