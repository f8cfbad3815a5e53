"""The Free Spoken Digit Dataset (github.com/Jakobovski/free-spoken-digit-dataset)."""

import dataclasses
import re
from pathlib import Path

from alm_jax.errors import UserError
from data_pipelines.dataset import DatasetConfig
from data_pipelines.paths import resolve_inside
from data_pipelines.source import AudioFile, Source, SourceRow, digest_rows
from data_pipelines.tables import read_csv

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MANUAL_DOWNLOAD = (
    "expected recordings/ with {digit}_{speaker}_{take}.wav, from "
    "https://github.com/Jakobovski/free-spoken-digit-dataset, and beside it metadata.csv "
    "with the columns filename, split, digit"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FsddConfig(DatasetConfig):
    """The Free Spoken Digit Dataset in its published layout: ``recordings/``, and a ``metadata.csv`` beside it.

    Splits: those that the CSV names in its column ``split``, ``train`` and ``test``. The caption of a recording is
    the word of its digit (``seven``), its label the digit.
    """

    root: str
    """Folder that holds ``recordings/`` and ``metadata.csv`` (columns filename, split, digit)."""

    def short_name(self) -> str:
        return "digits"

    def read(self, problems: list[str] | None = None) -> Source:
        root = Path(self.root)
        table, audio = root / "metadata.csv", root / "recordings"
        for path, kind in ((root, "folder"), (audio, "folder"), (table, "file")):
            if not (path.is_dir() if kind == "folder" else path.is_file()):
                raise UserError(f"{path}: no such {kind}; {MANUAL_DOWNLOAD}")
        rows = []
        for cells in read_csv(table, columns=("filename", "split", "digit"), unique="filename"):
            path = resolve_inside(audio, cells["filename"], cells, "filename")
            if not re.fullmatch(r"[a-z]\w*", cells["split"], re.ASCII):
                raise cells.fail("split", "the name of a split, such as train or test")
            if not re.fullmatch("[0-9]", cells["digit"]):
                raise cells.fail("digit", "one of 0 to 9")
            word = DIGITS[int(cells["digit"])]
            rows.append(
                SourceRow(
                    id=cells["filename"],
                    audio=AudioFile(path),
                    captions=(word,),
                    labels=(word,),
                    split=cells["split"],
                    licence="CC-BY-SA-4.0",
                    source=f"recordings/{cells['filename']}",
                )
            )
        return Source(rows=rows, class_names=DIGITS, signature=digest_rows(rows))
