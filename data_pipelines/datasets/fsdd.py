"""TFDS builder of the Free Spoken Digit Dataset (github.com/Jakobovski/free-spoken-digit-dataset)."""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from alm_jax.errors import UserError
from data_pipelines.config import FsddConfig
from data_pipelines.datasets.captioned_audio import CaptionedAudioBuilder, Example, Planned
from data_pipelines.datasets.recordings import digest_source, read_recording
from data_pipelines.tables import Row, read_csv, resolve_inside

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MANUAL_DOWNLOAD = (
    "expected recordings/ with {digit}_{speaker}_{take}.wav, from "
    "https://github.com/Jakobovski/free-spoken-digit-dataset, and beside it metadata.csv "
    "with the columns filename, split, digit"
)
_LICENCE = "CC-BY-SA-4.0"


def read_rows(config: FsddConfig) -> list[Row]:
    """Rows of ``metadata.csv``, checked.

    Raises:
      UserError: ``root``, ``recordings/`` or ``metadata.csv`` is not there.
      DataError: the CSV has a column, a value or a path that it must not; the message has file and line.
    """
    root = Path(config.root)
    for path, kind in ((root, "folder"), (root / "recordings", "folder"), (root / "metadata.csv", "file")):
        if not (path.is_dir() if kind == "folder" else path.is_file()):
            raise UserError(f"{path}: no such {kind}; {MANUAL_DOWNLOAD}")
    rows = read_csv(root / "metadata.csv", columns=("filename", "split", "digit"), unique="filename")
    for row in rows:
        resolve_inside(root / "recordings", row["filename"], row, "filename")
        if not re.fullmatch(r"[a-z]\w*", row["split"], re.ASCII):
            raise row.fail("split", "the name of a split, such as train or test")
        if not re.fullmatch("[0-9]", row["digit"]):
            raise row.fail("digit", "one of 0 to 9")
    return rows


class Fsdd(CaptionedAudioBuilder):
    """Spoken digits, ``zero`` to ``nine``, by a few speakers; the splits are those of the table."""

    @classmethod
    def check(cls, settings: FsddConfig, sample_rate_hz: int) -> None:
        read_rows(settings)

    @classmethod
    def short_name(cls, settings: FsddConfig) -> str:
        return "digits"

    @classmethod
    def source_signature(cls, settings: FsddConfig) -> str:
        """SHA-256 of the table, and of name, size and time of every recording."""
        root = Path(settings.root)
        filenames = [row["filename"] for row in read_rows(settings)]
        return digest_source([root / "metadata.csv"], root / "recordings", filenames)

    @functools.cached_property
    def _rows(self) -> list[Row]:
        return read_rows(self.settings)

    def class_names(self) -> Sequence[str]:
        return DIGITS

    def plan(self) -> Mapping[str, Sequence[Planned]]:
        plan: dict[str, list[Planned]] = {}
        for row in self._rows:
            planned = Planned(id=row["filename"], source=f"recordings/{row['filename']}", details=row)
            plan.setdefault(row["split"], []).append(planned)
        return plan

    def make_example(self, planned: Planned) -> Example:
        digit = int(planned.details["digit"])
        recording = read_recording(Path(self.settings.root) / planned.source, self.sample_rate_hz)
        return Example(
            pcm=recording.pcm,
            captions=[DIGITS[digit]],
            label=digit,
            licence=_LICENCE,
            source_sha256=recording.sha256,
            notes=recording.notes,
        )
