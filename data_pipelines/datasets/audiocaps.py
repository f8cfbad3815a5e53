"""AudioCaps 1.0 and 2.0 (Kim et al., "AudioCaps: Generating Captions for Audios in The Wild", NAACL 2019)."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

from data_pipelines.published import PublishedClip, PublishedConfig
from data_pipelines.tables import Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioCapsConfig(PublishedConfig):
    """AudioCaps: ``train.csv``, ``val.csv`` and ``test.csv`` as published, and a folder of ten-second recordings.

    Splits: ``train``, ``val``, ``test``. A recording may be named ``YOUTUBEID_START``, ``YOUTUBEID``, either with a
    ``Y`` before it, or by its ``audiocap_id``, with any ending.
    """

    version: Literal["1", "2"] = "1"
    """Version of the captions. ``1``: one caption for each of 49,838 training clips; ``2``: 91,256 training
    captions."""

    COLUMNS: ClassVar = ("audiocap_id", "youtube_id", "start_time", "caption")
    LICENCE: ClassVar = "captions MIT; recordings of YouTube, academic use only"
    GET: ClassVar = (
        "expected train.csv, val.csv and test.csv from https://github.com/cdjkim/audiocaps (dataset/, or dataset2.0/), "
        "and the recordings, which its authors give on request; nothing here downloads from YouTube"
    )

    def short_name(self) -> str:
        return f"v{self.version}"

    def tables(self) -> Mapping[str, str]:
        return {split: f"{split}.csv" for split in ("train", "val", "test")}

    def published_rows(self) -> Mapping[str, int]:
        return {"train": 49_838 if self.version == "1" else 91_256, "val": 2_475, "test": 4_875}

    def read_clip(self, row: Row, split: str) -> PublishedClip:
        video, start = row["youtube_id"].strip(), row["start_time"].strip()
        if not video:
            raise row.fail("youtube_id", "the id of a video")
        if not start.isdecimal() or len(start) > 6:
            raise row.fail("start_time", "whole seconds")
        names = (f"{video}_{start}", f"Y{video}_{start}", video, f"Y{video}", row["audiocap_id"].strip())
        return PublishedClip(id=f"{video}_{start}", names=names, captions=(row["caption"],))
