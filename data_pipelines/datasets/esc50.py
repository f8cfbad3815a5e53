"""TFDS builder of ESC-50 (K. J. Piczak, "ESC: Dataset for Environmental Sound Classification", 2015)."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from alm_jax.errors import DataError, UserError
from data_pipelines.captions import clean_title, normalise_caption
from data_pipelines.config import Esc50Config
from data_pipelines.datasets.captioned_audio import CaptionedAudioBuilder, Example, Planned
from data_pipelines.datasets.recordings import digest_source, read_recording
from data_pipelines.tables import Row, read_csv, resolve_inside

MANUAL_DOWNLOAD = (
    "expected the published layout: audio/ with the recordings and meta/esc50.csv; "
    "get it from https://github.com/karolpiczak/ESC-50"
)
# The licences of the collection; meta/freesound.csv, where it is, knows that of each recording.
_LICENCE_ESC10 = "CC-BY"
_LICENCE_ESC50 = "CC-BY-NC"


def read_rows(config: Esc50Config) -> list[Row]:
    """Rows of ``meta/esc50.csv`` that belong to the subset, checked.

    Raises:
      UserError: ``root``, ``audio/`` or ``meta/esc50.csv`` is not there.
      DataError: the CSV has a column, a value or a path that it must not; the message has file and line.
    """
    root = Path(config.root)
    for path, kind in ((root, "folder"), (root / "audio", "folder"), (root / "meta" / "esc50.csv", "file")):
        if not (path.is_dir() if kind == "folder" else path.is_file()):
            raise UserError(f"{path}: no such {kind}; {MANUAL_DOWNLOAD}")
    rows = read_csv(
        root / "meta" / "esc50.csv",
        columns=("filename", "fold", "target", "category", "esc10"),
        unique="filename",
    )
    names: dict[str, tuple[str, int]] = {}
    for row in rows:
        resolve_inside(root / "audio", row["filename"], row, "filename")
        for column in ("fold", "target"):
            if not row[column].isascii() or not row[column].isdigit():
                raise row.fail(column, "a whole number")
        if row["esc10"].lower() not in ("true", "false"):
            raise row.fail("esc10", "True or False")
        if not _class_name(row):
            continue  # it is rejected, and counted, when its turn comes
        name, line = names.setdefault(row["target"], (row["category"], row.line))
        if name != row["category"]:
            raise row.fail("category", f"{name!r}, which line {line} gives to target {row['target']}")
    if config.subset == "esc10":
        rows = [row for row in rows if row["esc10"].lower() == "true"]
        if not rows:
            raise DataError(f"{root / 'meta' / 'esc50.csv'}: no row has esc10 = True; use subset esc50")
    return rows


def _class_name(row: Row) -> str:
    """``crying_baby`` as people write it; may be empty."""
    return normalise_caption(row["category"].replace("_", " "))


def read_freesound(config: Esc50Config) -> dict[str, Row]:
    """Rows of ``meta/freesound.csv`` by file name; none where there is no such file and none is needed."""
    path = Path(config.root) / "meta" / "freesound.csv"
    if not path.is_file():
        if config.captions == "title":
            raise UserError(f"{path}: no such file; captions=title needs it, captions=class does not")
        return {}
    columns = ("filename", "title", "license") if config.captions == "title" else ("filename", "license")
    return {row["filename"]: row for row in read_csv(path, columns=columns, unique="filename")}


class Esc50(CaptionedAudioBuilder):
    """Environmental sounds in 50 classes (or the ten of ESC-10) and five folds, each fold a split."""

    @classmethod
    def check(cls, settings: Esc50Config, sample_rate_hz: int) -> None:
        read_rows(settings)
        read_freesound(settings)

    @classmethod
    def short_name(cls, settings: Esc50Config) -> str:
        return f"{settings.subset}-{settings.captions}"

    @classmethod
    def source_signature(cls, settings: Esc50Config) -> str:
        """SHA-256 of the tables, and of name, size and time of every recording."""
        root = Path(settings.root)
        tables = (root / "meta" / "esc50.csv", root / "meta" / "freesound.csv")
        return digest_source(tables, root / "audio", [row["filename"] for row in read_rows(settings)])

    @functools.cached_property
    def _rows(self) -> list[Row]:
        return read_rows(self.settings)

    @functools.cached_property
    def _freesound(self) -> dict[str, Row]:
        return read_freesound(self.settings)

    @functools.cached_property
    def _labels(self) -> dict[str, int]:
        """Label of each target: its rank, so that labels are 0 .. classes - 1 in a subset too."""
        targets = sorted({row["target"] for row in self._rows if _class_name(row)}, key=int)
        return {target: label for label, target in enumerate(targets)}

    def class_names(self) -> Sequence[str]:
        names = {row["target"]: _class_name(row) for row in self._rows if _class_name(row)}
        return [names[target] for target in self._labels]

    def plan(self) -> Mapping[str, Sequence[Planned]]:
        plan: dict[str, list[Planned]] = {}
        for row in sorted(self._rows, key=lambda row: int(row["fold"])):
            planned = Planned(id=row["filename"], source=f"audio/{row['filename']}", details=row)
            plan.setdefault(f"fold{int(row['fold'])}", []).append(planned)
        return plan

    def make_example(self, planned: Planned) -> Example:
        config: Esc50Config = self.settings
        row: Row = planned.details
        category = _class_name(row)
        if not category:
            raise DataError("empty caption: its category is blank")
        captions = [template.format(category) for template in config.templates]
        licence = _LICENCE_ESC10 if row["esc10"].lower() == "true" else _LICENCE_ESC50
        extra = self._freesound.get(row["filename"])
        licence = (extra and extra["license"].strip()) or licence
        notes = []
        if config.captions == "title":
            if title := clean_title(extra["title"]) if extra else "":
                captions = [title]
            else:
                notes.append("titles without a word in them, replaced by the class")
        recording = read_recording(Path(config.root) / planned.source, self.sample_rate_hz)
        return Example(
            pcm=recording.pcm,
            captions=captions,
            label=self._labels[row["target"]],
            licence=licence,
            source_sha256=recording.sha256,
            notes=[*notes, *recording.notes],
        )
