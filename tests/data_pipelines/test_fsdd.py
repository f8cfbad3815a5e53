"""The FSDD builder on real takes: words, digits, splits, resampling, and every fault of the folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from alm_jax.errors import DataError, UserError
from data_pipelines.config import DataConfig, TokenizerConfig
from data_pipelines.datasets.fsdd import FsddConfig
from data_pipelines.pipeline import eval_batches
from data_pipelines.prepare import prepare
from data_pipelines.prepared import Prepared

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def open_fsdd(root: Path, cache_dir: Path, *, max_bad_fraction: float = 0.0) -> Prepared:
    config = DataConfig(
        dataset=FsddConfig(root=str(root)),
        tokenizer=TokenizerConfig(vocab_size=300, max_length=8),
        source_sec=1.0,
        cache_dir=str(cache_dir),
        max_bad_fraction=max_bad_fraction,
    )
    return prepare(config, 16_000)


def test_a_take_says_its_digit(make_fsdd, tmp_path):
    root = make_fsdd()
    prepared = open_fsdd(root, tmp_path)
    assert prepared.class_names == tuple(WORDS)
    assert sorted(prepared.splits) == ["test", "train"]
    for name, take in (("test", 0), ("train", 5)):
        split = prepared.split(name)
        assert split.ids == tuple(f"{digit}_theo_{take}.wav" for digit in range(10))
        assert split.labels.tolist() == list(range(10))
        assert [split.captions(i) for i in range(10)] == [[word] for word in WORDS]
        assert split.licence == "CC-BY-SA-4.0 (10)"
    (batch,) = eval_batches(prepared, "test", batch_size=10)
    for row, num_samples in enumerate(batch["audio_num_samples"]):
        waveform, rate_hz = soundfile.read(root / "recordings" / f"{row}_theo_0.wav", dtype="float32")
        assert rate_hz == 8_000
        expected = soxr.resample(waveform, 8_000, 16_000, "HQ")[:16_000]
        assert num_samples == len(expected)
        np.testing.assert_allclose(batch["audio"][row, :num_samples] / 32768, expected, atol=1 / 65536 + 1e-7)


def test_the_splits_are_those_of_the_table(real_data_dir, tmp_path):
    """Of its 2,000 rows: takes 0 to 4 are for testing."""
    rows = FsddConfig(root=str(real_data_dir / "fsdd")).read().rows
    assert len(rows) == 2000
    for row in rows:
        digit, _, take = row.id.removesuffix(".wav").split("_")
        assert row.captions == row.labels == (WORDS[int(digit)],)
        assert row.split == ("test" if int(take) < 5 else "train")


def test_broken_takes_are_counted_and_named(make_fsdd, tmp_path):
    root = make_fsdd()
    (root / "recordings" / "3_theo_5.wav").unlink()
    (root / "recordings" / "4_theo_0.wav").write_bytes(b"")
    with pytest.raises(DataError, match="more than max_bad_fraction"):
        open_fsdd(root, tmp_path)
    prepared = open_fsdd(root, tmp_path, max_bad_fraction=0.2)
    assert prepared.num_rejected == 2
    lines = (prepared.folders[0] / "rejects.jsonl").read_text().splitlines()
    assert {line["path"]: line["reason"].partition(":")[0] for line in map(json.loads, lines)} == {
        "recordings/3_theo_5.wav": "missing",
        "recordings/4_theo_0.wav": "empty",
    }


@pytest.mark.parametrize("missing", ["", "recordings"])
def test_a_missing_folder_says_what_is_expected(make_fsdd, tmp_path, missing):
    root = make_fsdd()
    shutil.rmtree(root / missing)
    with pytest.raises(UserError, match=r"no such folder; expected recordings/ with "):
        open_fsdd(root, tmp_path)


def test_names_of_files_say_what_the_table_says(real_data_dir, tmp_path):
    (tmp_path / "recordings").symlink_to(real_data_dir / "fsdd" / "recordings")
    by_name = FsddConfig(root=str(tmp_path)).read().rows
    by_table = FsddConfig(root=str(real_data_dir / "fsdd")).read().rows
    assert [(row.id, row.split, row.labels) for row in by_name] == [
        (row.id, row.split, row.labels) for row in by_table
    ]


@pytest.mark.parametrize("column", ["filename", "split", "digit"])
def test_a_missing_column_is_named(make_fsdd, tmp_path, column):
    root = make_fsdd(without_columns=[column])
    with pytest.raises(DataError, match=rf"metadata\.csv:1: no column '{column}'; found the columns "):
        open_fsdd(root, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0_theo_0.wav,test,0", "0_theo_0.wav,test,10", "digit is '10', expected one of 0 to 9"),
        ("0_theo_0.wav,test,0", "0_theo_0.wav,test,", "digit is '', expected one of 0 to 9"),
        ("0_theo_0.wav,test", "0_theo_0.wav,a+b", r"split is 'a\+b', expected the name of a split"),
        ("0_theo_0.wav", "../metadata.csv", r"filename is '\.\./metadata\.csv', expected a path inside"),
    ],
)
def test_a_bad_cell_is_named_by_file_line_and_column(make_fsdd, tmp_path, old, new, message):
    root = make_fsdd()
    table = root / "metadata.csv"
    assert old in table.read_text()
    table.write_text(table.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=rf"metadata\.csv:2: {message}"):
        open_fsdd(root, tmp_path)
