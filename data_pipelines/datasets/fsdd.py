"""The Free Spoken Digit Dataset (github.com/Jakobovski/free-spoken-digit-dataset)."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from alm_jax.errors import UserError
from data_pipelines.dataset import DatasetConfig
from data_pipelines.paths import resolve_inside
from data_pipelines.source import AudioFile, Source, SourceRow, digest_rows
from data_pipelines.tables import read_csv

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GET = (
    "expected recordings/ with {digit}_{speaker}_{take}.wav, from "
    "https://github.com/Jakobovski/free-spoken-digit-dataset"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FsddConfig(DatasetConfig):
    """The Free Spoken Digit Dataset in its published layout: ``recordings/``.

    Splits: takes 0 to 4 are ``test``, the others ``train``; a ``metadata.csv`` (filename, split, digit) beside the
    recordings replaces this rule. The caption of a recording is the word of its digit (``seven``), which is also its
    label.
    """

    root: str
    """Folder that holds ``recordings/``."""

    def short_name(self) -> str:
        return "digits"

    def read(self, problems: list[str] | None = None) -> Source:
        for path in (Path(self.root), Path(self.root) / "recordings"):
            if not path.is_dir():
                raise UserError(f"{path}: no such folder; {GET}")
        rows = [_make_row(*found) for found in self._find()]
        if not rows:
            raise UserError(f"{self.root}/recordings: no recordings are there; {GET}")
        return Source(rows=rows, class_names=DIGITS, signature=digest_rows(rows))

    def _find(self) -> Iterator[tuple[Path, str, str]]:
        """Returns path, split and digit of every recording."""
        folder, table = Path(self.root) / "recordings", Path(self.root) / "metadata.csv"
        if not table.is_file():
            for path in sorted(folder.glob("*.wav")):
                if found := re.fullmatch(r"([0-9])_\w+_([0-9]{1,4})\.wav", path.name):
                    yield path, "test" if int(found[2]) < 5 else "train", found[1]
            return
        for row in read_csv(table, columns=("filename", "split", "digit"), unique="filename"):
            path = resolve_inside(folder, row["filename"], row, "filename")
            if not re.fullmatch(r"[a-z]\w*", row["split"], re.ASCII):
                raise row.fail("split", "the name of a split, such as train or test")
            if not re.fullmatch("[0-9]", row["digit"]):
                raise row.fail("digit", "one of 0 to 9")
            yield path, row["split"], row["digit"]


def _make_row(path: Path, split: str, digit: str) -> SourceRow:
    word = (DIGITS[int(digit)],)
    source, licence = f"recordings/{path.name}", "CC-BY-SA-4.0"
    return SourceRow(
        id=path.name,
        audio=AudioFile(path),
        captions=word,
        labels=word,
        split=split,
        licence=licence,
        source=source,
    )
