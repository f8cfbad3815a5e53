"""Layouts of recordings and their texts in a file or folder: a table, pairs of files, tars, or Hugging Face's
layouts."""

import dataclasses
import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from alm_jax.errors import DataError, UserError
from data_pipelines.tables import TABLE_SUFFIXES, Row, read_table
from data_pipelines.tars import AUDIO_SUFFIXES, MAX_TEXT_BYTES, Unused, read_tar, read_text_cells

EXPECTED = (
    f"expected a table ({', '.join(TABLE_SUFFIXES)}), a folder of recordings with a NAME.txt or NAME.json beside each "
    "NAME.wav, a folder with metadata.csv or metadata.jsonl, one of Parquet tables, one of webdataset tars, a folder "
    "for each class, or a pattern such as 'shards/*.tar'"
)
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "valid": "validation",
    "val": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A file of a data set that has rows, or a folder whose pairs of files are rows."""

    path: Path
    root: Path
    """Folder that its paths are relative to."""
    split: str = ""
    """Split that its name states: ``train-00000-of-00004.parquet``, ``test/metadata.csv``; '' where it states
    none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Layout found at a path."""

    kind: str
    """Short description: ``a table``, ``webdataset tars``."""
    parts: tuple[Part, ...]
    unused: Unused
    """What was skipped while reading rows."""

    def rows(self) -> Iterator[tuple[Part, Row]]:
        """Yields every row, part after part. Raises DataError where a part cannot be read."""
        for part in self.parts:
            if part.path.is_dir():
                rows = _read_folder(part, self.unused)
            elif part.path.suffix.lower() == ".tar":
                rows = read_tar(part.path, self.unused)
            else:
                rows = read_table(part.path)
            for row in rows:
                yield part, row


def find_layout(path: str, root: str = "") -> Layout:
    """Finds the layout of a path or a pattern of paths. Raises UserError where there is no known layout.

    ``root``: folder that paths in tables are relative to; '' is the folder of the table.
    """
    place = Path(path).expanduser()
    files = [place]
    if not os.path.lexists(place):
        files = [Path(found) for found in sorted(glob.glob(str(place), recursive=True))]
        if not files:
            raise UserError(f"{path}: there is no such file or folder; {EXPECTED}")
    unused = Unused()
    if len(files) > 1 or not files[0].is_dir():
        kinds = {file.suffix.lower() for file in files}
        if not kinds <= {".tar", *TABLE_SUFFIXES}:
            raise UserError(f"{files[0]}: not a file with rows; {EXPECTED}")
        base = files[0].parent
        kind = "webdataset tars" if kinds == {".tar"} else "a table" if len(files) == 1 else "tables"
        return Layout(kind=kind, parts=_parts(files, base, root), unused=unused)
    folder = files[0]
    below = sorted(folder.rglob("*"))
    for kind, wanted in (
        ("a folder with metadata, as AudioFolder has it", re.compile(r"metadata\.(csv|jsonl|parquet)")),
        ("webdataset tars", re.compile(r".*\.tar", re.IGNORECASE)),
        ("Parquet tables", re.compile(r".*\.parquet", re.IGNORECASE)),
    ):
        found = [file for file in below if wanted.fullmatch(file.name) and file.is_file()]
        if found:
            return Layout(kind=kind, parts=_parts(found, folder, root), unused=unused)
    tables = [file for file in folder.iterdir() if file.suffix.lower() in TABLE_SUFFIXES]
    if len(tables) == 1:
        return Layout(kind=f"a table, {tables[0].name}", parts=_parts(tables, folder, root), unused=unused)
    if any(file.suffix.lower() in AUDIO_SUFFIXES for file in below):
        part = Part(path=folder, root=folder)
        return Layout(kind="a folder of recordings", parts=(part,), unused=unused)
    tables_found = (
        f" It has several tables, name one: {', '.join(sorted(t.name for t in tables))}." if tables else ""
    )
    raise UserError(
        f"{path}: no recordings were found in it.{tables_found} {EXPECTED[0].upper()}{EXPECTED[1:]}"
    )


def split_of(relative: PurePath) -> str:
    """Split named by a path, by a folder or by the beginning of its name; '' where it names none."""
    for word in relative.parts:
        match = re.match(r"[A-Za-z]+(?=$|[-_.\d])", word)
        if match and match[0].lower() in _SPLIT_WORDS:
            return _SPLIT_WORDS[match[0].lower()]
    return ""


def _parts(files: Sequence[Path], base: Path, root: str) -> tuple[Part, ...]:
    own = Path(root).expanduser() if root else None
    return tuple(
        Part(path=file, root=own or file.parent, split=split_of(file.relative_to(base)))
        for file in sorted(files)
    )


def _read_folder(part: Part, unused: Unused) -> Iterator[Row]:
    """Yields recordings with the texts beside them; where none has a text, with the names of their folders as
    classes."""
    files = sorted(path for path in part.path.rglob("*") if not path.name.startswith("."))
    texts: dict[Path, list[Path]] = {}
    for path in files:
        if path.suffix.lower() in (".txt", ".json") and path.is_file():
            texts.setdefault(path.with_suffix(""), []).append(path)
    recordings = [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]
    paired = any(path.with_suffix("") in texts for path in recordings)
    for number, path in enumerate(recordings, start=1):
        relative = path.relative_to(part.path)
        beside = texts.pop(path.with_suffix(""), [])
        cells: dict[str, object] = {}
        for text in beside:
            cells |= read_text_cells(text.suffix.lower(), _read_small(text), str(text))
        if paired and not beside:
            unused.add("recordings without a text beside them", relative.as_posix())
            continue
        if not paired:
            if len(relative.parts) < 2:
                unused.add("recordings without a text, and in no folder of a class", relative.as_posix())
                continue
            cells["label"] = relative.parts[-2]
        yield Row(
            beside[0] if beside else part.path,
            number if not beside else 1,
            cells | {"audio": relative.as_posix()},
        )
    for left in texts.values():
        for text in left:
            unused.add("texts without a recording beside them", text.relative_to(part.path).as_posix())


def _read_small(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_TEXT_BYTES:
            raise DataError(f"{path}: it has {size} bytes, a text has at most {MAX_TEXT_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
