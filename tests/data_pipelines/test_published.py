"""Recipes of published sets: the real layout, in small, read as published; recordings joined with their tables."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from alm_jax.errors import DataError, UserError
from data_pipelines.datasets.audiocaps import AudioCapsConfig
from data_pipelines.datasets.clotho import ClothoConfig
from data_pipelines.datasets.laion_audio import LaionAudioConfig


def write_sound(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).uniform(-0.5, 0.5, 4410), 44_100)


def write_csv(path: Path, *rows: list[str], encoding: str = "utf-8", delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


AUDIOCAPS = ["audiocap_id", "youtube_id", "start_time", "caption"]


def make_audiocaps(root: Path) -> Path:
    write_csv(root / "train.csv", AUDIOCAPS, ["1", "r1nicOVtvkQ", "130", "A woman talks, water pours"])
    write_csv(
        root / "test.csv",
        AUDIOCAPS,
        ["2", "7fmOlUlwoNg", "20", "Constant rattling"],
        ["3", "7fmOlUlwoNg", "20", "A machine clicks"],
        ["4", "6BJ455B1aAs", "0", "A rocket flies by"],
    )
    write_sound(root / "audio" / "train" / "Yr1nicOVtvkQ_130.wav")
    write_sound(root / "audio" / "7fmOlUlwoNg.flac")
    return root


def test_audiocaps_joins_captions_with_the_recordings_that_are_there(tmp_path):
    source = AudioCapsConfig(root=str(make_audiocaps(tmp_path))).read()
    assert {row.id: (row.split, row.captions) for row in source.rows} == {
        "r1nicOVtvkQ_130": ("train", ("A woman talks, water pours",)),
        "7fmOlUlwoNg_20": ("test", ("Constant rattling", "A machine clicks")),
    }
    assert source.found == (
        "train: 1 rows of 49,838 published; 1 clips, 1 recordings found, 0 missing",
        "test: 3 rows of 4,875 published; 2 clips, 1 recordings found, 1 missing",
        "val: no val.csv",
    )
    assert source.rows[0].audio.read(16_000).pcm.size == 1600
    second = AudioCapsConfig(root=str(tmp_path), version="2").read()
    assert "1 rows of 91,256 published" in second.found[0]


def test_the_published_tables_have_the_published_rows(real_data_dir, tmp_path):
    write_sound(tmp_path / "r1nicOVtvkQ_130.wav")
    source = AudioCapsConfig(root=str(real_data_dir / "audiocaps"), audio_root=str(tmp_path)).read()
    assert source.found == (
        "train: 49,838 rows of 49,838 published; 49,838 clips, 1 recordings found, 49,837 missing",
        "val: 2,475 rows of 2,475 published; 495 clips, 0 recordings found, 495 missing",
        "test: 4,875 rows of 4,875 published; 975 clips, 0 recordings found, 975 missing",
    )


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (["1", "", "0", "x"], r"train\.csv:2: youtube_id is '', expected the id of a video"),
        (["1", "a", "soon", "x"], r"train\.csv:2: start_time is 'soon', expected whole seconds"),
        (["1", "a", "9" * 5000, "x"], r"train\.csv:2: start_time is '9{199}\.\.\. "),
    ],
)
def test_a_bad_cell_of_audiocaps_is_named(tmp_path, cell, message):
    write_csv(tmp_path / "train.csv", AUDIOCAPS, cell)
    with pytest.raises(DataError, match=message):
        AudioCapsConfig(root=str(tmp_path)).read()


def make_clotho(root: Path) -> Path:
    header = ["file_name", *(f"caption_{n}" for n in range(1, 6))]
    metadata = [
        "file_name",
        "keywords",
        "sound_id",
        "sound_link",
        "start_end_samples",
        "manufacturer",
        "license",
    ]
    for number, split in enumerate(("development", "validation", "evaluation")):
        names = [f"Möwe {split}.wav", "Rain.wav"]
        write_csv(root / f"clotho_captions_{split}.csv", header, *([name, *"abcde"] for name in names))
        write_csv(
            root / f"clotho_metadata_{split}.csv",
            metadata,
            *([name, "k;ü", "1", "https://", "[0, 1]", "x", f"CC {split}"] for name in names),
            encoding="utf-8" if number == 0 else "latin-1",
            delimiter=";" if number == 2 else ",",
        )
        for seed, name in enumerate(names):
            write_sound(root / split / name, seed)
    return root


def test_clotho_has_five_captions_and_each_recording_its_licence(tmp_path):
    source = ClothoConfig(root=str(make_clotho(tmp_path))).read()
    assert len(source.rows) == 6
    for row in source.rows:
        assert row.captions == tuple("abcde")
        assert row.licence == f"CC {row.split}"
        assert row.audio.path.parent.name == row.split
        assert row.id.startswith(f"{row.split}/")
    assert source.found[1] == (
        "validation: 2 rows of 1,045 published; 2 clips, 2 recordings found, 0 missing"
    )


def make_laion(root: Path) -> Path:
    file = io.BytesIO()
    soundfile.write(file, np.full(4800, 0.1), 48_000, format="FLAC")
    for split, name in (("train", "1"), ("train", "2"), ("test", "3")):
        folder = root / split
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "text": ["a dog", "barking"],
            "tag": ["dog"],
            "original_data": {"title": "x", "license": "CC0"},
        }
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for ending, content in (("flac", file.getvalue()), ("json", json.dumps(record).encode())):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (root / "train" / "sizes.json").write_text("{}")
    return root


def test_laion_audio_is_read_from_its_tars(tmp_path):
    source = LaionAudioConfig(root=str(make_laion(tmp_path))).read()
    assert {row.id: row.split for row in source.rows} == {"1": "train", "2": "train", "3": "test"}
    assert {row.captions for row in source.rows} == {("a dog", "barking")}
    assert all(row.labels == () for row in source.rows)
    assert source.found[-1] == "3 pairs found; 460,801 are published without overlap"


@pytest.mark.parametrize("kind", [AudioCapsConfig, ClothoConfig, LaionAudioConfig])
def test_what_is_expected_and_where_to_get_it_is_said(tmp_path, kind):
    with pytest.raises(UserError, match=r"expected .*https://"):
        kind(root=str(tmp_path)).read()


def test_tables_without_any_of_their_recordings_are_an_error(tmp_path):
    make_audiocaps(tmp_path)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="no recording of the AudioCaps tables is there"):
        AudioCapsConfig(root=str(tmp_path), audio_root=str(tmp_path / "nothing")).read()
