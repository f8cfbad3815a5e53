"""Data sets that several test files read, built once a session, and small folders in the layouts of ESC-50 and FSDD."""

import csv
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from data_pipelines.config import DataConfig, TokenizerConfig
from data_pipelines.datasets.esc50 import Esc50Config
from data_pipelines.datasets.synthetic_captions import SyntheticCaptionsConfig
from data_pipelines.prepare import prepare
from data_pipelines.prepared import Prepared

SYNTHETIC = SyntheticCaptionsConfig(num_train=150, num_validation=10, num_test=30, clip_sec=1.0)


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """150 + 10 + 30 synthetic clips of 1 s at 16 kHz, of which batches show 0.75 s."""
    config = DataConfig(
        dataset=SYNTHETIC,
        tokenizer=TokenizerConfig(vocab_size=400, max_length=24),
        source_sec=0.75,
        cache_dir=str(tmp_path_factory.mktemp("synthetic")),
    )
    return prepare(config, 16_000)


@pytest.fixture(scope="session")
def esc10(real_data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The real ESC-10 folds 1 to 4, at 16 kHz, with titles as captions."""
    config = DataConfig(
        dataset=Esc50Config(root=str(real_data_dir / "esc10"), subset="esc10", captions="title"),
        source_sec=6.0,
        train_split="fold1+fold2+fold3",
        eval_split="fold4",
        cache_dir=str(tmp_path_factory.mktemp("esc10")),
    )
    return prepare(config, 16_000)


@pytest.fixture
def make_esc(real_data_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder in ESC-50's layout with the first real recordings of each of two folds."""

    def make(
        num_clips: int = 6, *, without_columns: Sequence[str] = (), with_freesound: bool = False
    ) -> Path:
        root = tmp_path / "esc"
        (root / "audio").mkdir(parents=True)
        (root / "meta").mkdir()
        with open(real_data_dir / "esc10" / "meta" / "esc50.csv", newline="") as table:
            rows = list(csv.DictReader(table))
        half = num_clips // 2
        rows = [row for row in rows if row["fold"] == "1"][:half] + [
            row for row in rows if row["fold"] == "2"
        ][:half]
        for row in rows:
            shutil.copy(real_data_dir / "esc10" / "audio" / row["filename"], root / "audio")
        columns = [column for column in rows[0] if column not in without_columns]
        with open(root / "meta" / "esc50.csv", "w", newline="") as table:
            writer = csv.DictWriter(table, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        if with_freesound:
            shutil.copy(real_data_dir / "esc10" / "meta" / "freesound.csv", root / "meta")
        return root

    return make


@pytest.fixture
def make_fsdd(real_data_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder in FSDD's layout with takes 0 (test) and 5 (train) of every digit by one speaker."""

    def make(*, without_columns: Sequence[str] = ()) -> Path:
        root = tmp_path / "fsdd"
        (root / "recordings").mkdir(parents=True)
        with open(real_data_dir / "fsdd" / "metadata.csv", newline="") as table:
            rows = [row for row in csv.DictReader(table) if row["speaker"] == "theo"]
        rows = [row for row in rows if row["filename"].endswith(("_0.wav", "_5.wav"))]
        for row in rows:
            shutil.copy(real_data_dir / "fsdd" / "recordings" / row["filename"], root / "recordings")
        columns = [column for column in rows[0] if column not in without_columns]
        with open(root / "metadata.csv", "w", newline="") as table:
            writer = csv.DictWriter(table, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        return root

    return make
