"""Clotho 2.1 (Drossos, Lipping and Virtanen, "Clotho: An Audio Captioning Dataset", ICASSP 2020)."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from alm_jax.errors import DataError
from data_pipelines.published import PublishedClip, PublishedConfig
from data_pipelines.tables import Row, read_csv


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClothoConfig(PublishedConfig):
    """Clotho 2.1: ``clotho_captions_SPLIT.csv`` as published, and the unpacked folders ``SPLIT/`` of recordings.

    Splits: ``development``, ``validation``, ``evaluation``, five captions a clip. The licence of a recording is that
    of ``clotho_metadata_SPLIT.csv``, where that file exists.
    """

    COLUMNS: ClassVar = ("file_name", *(f"caption_{number}" for number in range(1, 6)))
    LICENCE: ClassVar = "recordings Creative Commons by their Freesound page; captions non-commercial"
    GET: ClassVar = (
        "expected clotho_captions_development.csv and those of validation and evaluation, and beside them the folders "
        "development/, validation/ and evaluation/, unpacked from the .7z files of https://zenodo.org/records/4783391"
    )

    def tables(self) -> Mapping[str, str]:
        return {split: f"clotho_captions_{split}.csv" for split in self.published_rows()}

    def published_rows(self) -> Mapping[str, int]:
        return {"development": 3_839, "validation": 1_045, "evaluation": 1_045}

    def read_clip(self, row: Row, split: str) -> PublishedClip:
        name = row["file_name"]
        captions = tuple(row[column] for column in self.COLUMNS[1:])
        licence = _licences(Path(self.root).expanduser() / f"clotho_metadata_{split}.csv").get(name, "")
        return PublishedClip(
            id=f"{split}/{name}", names=(f"{split}/{name}", name), captions=captions, licence=licence
        )


@functools.lru_cache(maxsize=3)
def _licences(table: Path) -> Mapping[str, str]:
    """Returns licences by file name; none where there is no table. Published tables are in Latin-1, or have
    semicolons."""
    if not table.is_file():
        return {}
    for encoding, delimiter in (("utf-8-sig", ","), ("latin-1", ","), ("latin-1", ";")):
        try:
            rows = read_csv(table, columns=("file_name", "license"), encoding=encoding, delimiter=delimiter)
            return {row["file_name"]: row["license"].strip() for row in rows}
        except DataError as error:
            last = error
    raise last
