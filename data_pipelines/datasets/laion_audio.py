"""LAION-Audio-630K (Wu et al., "Large-Scale Contrastive Language-Audio Pretraining", ICASSP 2023), as tars."""

import dataclasses
from pathlib import Path
from typing import ClassVar

from alm_jax.errors import UserError
from data_pipelines.columns import ColumnsConfig
from data_pipelines.dataset import DatasetConfig
from data_pipelines.datasets.recordings import RecordingsConfig
from data_pipelines.source import Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaionAudioConfig(DatasetConfig):
    """LAION-Audio-630K: tars of ``NAME.flac`` and ``NAME.json`` below ``train/``, ``test/`` and other folders.

    Splits are the folders. Captions are ``text`` of the JSON; its ``tag`` is not a caption and is not read.
    """

    root: str
    """Folder that holds the tars."""

    PUBLISHED: ClassVar = 460_801
    """Number of pairs of the released Freesound part without overlap with evaluation sets, of 633,526 in all."""
    GET: ClassVar = (
        "expected tars below train/ and test/, such as https://huggingface.co/datasets/Meranti/CLAP_freesound "
        "(freesound_no_overlap/)"
    )

    def read(self, problems: list[str] | None = None) -> Source:
        root = Path(self.root).expanduser()
        if not root.is_dir() or not any(root.rglob("*.tar")):
            raise UserError(f"{root}: no tars are there; {self.GET}")
        recordings = RecordingsConfig(
            path=str(root),
            columns=ColumnsConfig(captions=("text",), labels="-", id="-", split="-"),
            licence="research only; each recording's own at Freesound",
        )
        source = recordings.read(problems)
        counts = f"{len(source.rows):,} pairs found; {self.PUBLISHED:,} are published without overlap"
        return dataclasses.replace(source, found=(*source.found, counts))
