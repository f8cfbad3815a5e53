"""ESC-50 (K. J. Piczak, "ESC: Dataset for Environmental Sound Classification", 2015)."""

import dataclasses
from pathlib import Path
from typing import Literal

from alm_jax.errors import DataError, UserError
from data_pipelines.captions import clean_title, normalise_caption
from data_pipelines.dataset import DatasetConfig
from data_pipelines.paths import resolve_inside
from data_pipelines.source import AudioFile, Source, SourceRow, digest_rows
from data_pipelines.tables import Row, read_csv

MANUAL_DOWNLOAD = (
    "expected the published layout: audio/ with the recordings and meta/esc50.csv; "
    "get it from https://github.com/karolpiczak/ESC-50"
)
# Licences of the whole collection; meta/freesound.csv, where it exists, has that of each recording.
_LICENCE_ESC10 = "CC-BY"
_LICENCE_ESC50 = "CC-BY-NC"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Esc50Config(DatasetConfig):
    """ESC-50 (Piczak 2015) in its published layout: ``audio/`` and ``meta/esc50.csv``.

    Splits: ``fold1`` ... ``fold5``, the folds of the CSV; join them with ``+``.
    """

    root: str
    """Folder that holds ``audio/`` and ``meta/``."""
    subset: Literal["esc50", "esc10"] = "esc50"
    """Subset of the data set. ``esc10`` keeps the ten classes of the rows whose column ``esc10`` is True."""
    captions: Literal["class", "title"] = "class"
    """Where captions come from. ``class``: every template, filled with the class name. ``title``: the cleaned title
    of the recording (``meta/freesound.csv``), or the templates where nothing of it is left."""
    templates: tuple[str, ...] = ("This is a sound of {}.",)
    """Templates of the captions; ``{}`` is the class name. Of several, training picks one at random each time."""

    def __post_init__(self) -> None:
        if not self.templates or any(template.count("{}") != 1 for template in self.templates):
            raise UserError(
                f"dataset.templates is {self.templates!r}; give at least one, each with exactly one {{}} "
                "where the name of the class goes"
            )

    def short_name(self) -> str:
        return f"{self.subset}-{self.captions}"

    def read(self, problems: list[str] | None = None) -> Source:
        table = self._read_table()
        freesound = self._read_freesound()
        rows = [self._make_row(cells, freesound.get(cells["filename"])) for cells in table]
        names = {cells["target"]: _class_name(cells) for cells in table}
        return Source(
            rows=sorted(rows, key=lambda row: int(row.split.removeprefix("fold"))),
            # Rank of the target, so that labels are 0 .. classes - 1 in a subset too.
            class_names=tuple(names[target] for target in sorted(names, key=int) if names[target]),
            signature=digest_rows(rows),
        )

    def _make_row(self, cells: Row, freesound: Row | None) -> SourceRow:
        name = _class_name(cells)
        captions = tuple(template.format(name) for template in self.templates) if name else ()
        notes: tuple[str, ...] = ()
        if self.captions == "title" and name:
            if title := clean_title(freesound["title"]) if freesound else "":
                captions = (title,)
            else:
                notes = ("titles without a word in them, replaced by the class",)
        licence = _LICENCE_ESC10 if cells["esc10"].lower() == "true" else _LICENCE_ESC50
        source = f"audio/{cells['filename']}"
        return SourceRow(
            id=cells["filename"],
            audio=AudioFile(Path(self.root) / source),
            captions=captions,
            labels=(name,) if name else (),
            split=f"fold{int(cells['fold'])}",
            licence=(freesound and freesound["license"].strip()) or licence,
            source=source,
            notes=notes,
        )

    def _read_table(self) -> list[Row]:
        """Reads the rows of ``meta/esc50.csv`` that belong to the subset, checked."""
        root = Path(self.root)
        table = root / "meta" / "esc50.csv"
        for path, kind in ((root, "folder"), (root / "audio", "folder"), (table, "file")):
            if not (path.is_dir() if kind == "folder" else path.is_file()):
                raise UserError(f"{path}: no such {kind}; {MANUAL_DOWNLOAD}")
        rows = read_csv(table, columns=("filename", "fold", "target", "category", "esc10"), unique="filename")
        names: dict[str, tuple[str, int]] = {}
        for row in rows:
            resolve_inside(root / "audio", row["filename"], row, "filename")
            for column in ("fold", "target"):
                # At most nine digits: Python refuses to parse thousands of digits.
                if not row[column].isascii() or not row[column].isdigit() or len(row[column]) > 9:
                    raise row.fail(column, "a whole number")
            if row["esc10"].lower() not in ("true", "false"):
                raise row.fail("esc10", "True or False")
            if not _class_name(row):
                continue  # it is rejected, and counted, when it is read
            name, line = names.setdefault(row["target"], (row["category"], row.line))
            if name != row["category"]:
                raise row.fail("category", f"{name!r}, which line {line} gives to target {row['target']}")
        if self.subset == "esc10":
            rows = [row for row in rows if row["esc10"].lower() == "true"]
            if not rows:
                raise DataError(f"{table}: no row has esc10 = True; use subset esc50")
        return rows

    def _read_freesound(self) -> dict[str, Row]:
        """Reads rows of ``meta/freesound.csv`` by file name; none where the file does not exist and is not needed."""
        path = Path(self.root) / "meta" / "freesound.csv"
        if not path.is_file():
            if self.captions == "title":
                raise UserError(f"{path}: no such file; captions=title needs it, captions=class does not")
            return {}
        columns = ("filename", "title", "license") if self.captions == "title" else ("filename", "license")
        return {row["filename"]: row for row in read_csv(path, columns=columns, unique="filename")}


def _class_name(row: Row) -> str:
    """Turns ``crying_baby`` into words; may be empty."""
    return normalise_caption(row["category"].replace("_", " "))
