"""The ESC-50 builder on real recordings: labels, folds, titles, licences, and every fault of the folder."""

import collections
import csv
import json
import logging
import shutil

import numpy as np
import pytest
import soundfile

from alm_jax.errors import DataError, UserError
from data_pipelines.captions import clean_title
from data_pipelines.config import DataConfig, TokenizerConfig
from data_pipelines.datasets.esc50 import Esc50Config
from data_pipelines.decode import float_to_pcm, read_audio
from data_pipelines.prepare import prepare
from data_pipelines.prepared import Prepared


def open_esc(root, cache_dir, *, max_bad_fraction=0.0, **dataset) -> Prepared:
    config = DataConfig(
        dataset=Esc50Config(root=str(root), **dataset),
        tokenizer=TokenizerConfig(vocab_size=300),
        source_sec=1.0,
        train_split="fold1",
        eval_split="fold2",
        cache_dir=str(cache_dir),
        max_bad_fraction=max_bad_fraction,
    )
    return prepare(config, 8_000)


def edit(path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_real_folds_with_titles(esc10, real_data_dir):
    tables = {}
    for name in ("esc50", "freesound"):
        with open(real_data_dir / "esc10" / "meta" / f"{name}.csv", newline="", encoding="utf-8") as table:
            tables[name] = {row["filename"]: row for row in csv.DictReader(table)}
    assert esc10.num_rejected == 0
    assert sorted(esc10.splits) == ["fold1", "fold2", "fold3", "fold4"]
    assert len(esc10.class_names) == 10
    assert {"crying baby", "sea waves", "dog"} <= set(esc10.class_names)
    for name, split in esc10.splits.items():
        rows = [tables["esc50"][filename] for filename in split.ids]
        assert [f"fold{row['fold']}" for row in rows] == [name] * 80
        assert [esc10.class_names[label] for label in split.labels] == [
            row["category"].replace("_", " ") for row in rows
        ]
        assert [tables["freesound"][filename]["license"] for filename in split.ids] == list(split.licences)
        for i, filename in enumerate(split.ids):
            title = clean_title(tables["freesound"][filename]["title"])
            assert split.captions(i) == [title or f"This is a sound of {esc10.class_names[split.labels[i]]}."]
    ranks = sorted({int(row["target"]) for row in tables["esc50"].values()})
    assert [int(tables["esc50"][filename]["target"]) for filename in esc10.split("fold1").ids] == [
        ranks[label] for label in esc10.split("fold1").labels
    ]
    licences = collections.Counter(esc10.split("fold1+fold2+fold3").licences)
    assert (
        esc10.split("fold1+fold2+fold3").licence
        == f"CC0 ({licences['CC0']}), CC-BY ({licences['CC-BY']}), CC-Sampling+ (2)"
    )


def test_records_hold_what_the_decoder_gives(esc10, real_data_dir):
    split = esc10.split("fold2")
    for i in (0, 41, 79):
        waveform = read_audio(real_data_dir / "esc10" / "audio" / split.ids[i], 16_000)
        (pcm,) = split.read_pcm([i])
        assert pcm.dtype == np.int16
        assert np.array_equal(pcm, float_to_pcm(waveform))
        assert split.num_samples[i] == len(pcm)


def test_the_first_records_of_a_fold_are_those_of_the_table(make_esc, tmp_path):
    root = make_esc(6)
    with open(root / "meta" / "esc50.csv", newline="") as table:
        filenames = [row["filename"] for row in csv.DictReader(table)]
    prepared = open_esc(root, tmp_path)
    assert prepared.split("fold1+fold2").ids == tuple(filenames)
    assert prepared.split("fold1").captions(0) == [f"This is a sound of {prepared.class_names[0]}."]
    assert prepared.licences == {"Esc50": "CC-BY (3)"}  # the collection's, as there is no freesound.csv


def test_templates_are_the_captions_of_a_class(make_esc, tmp_path):
    prepared = open_esc(make_esc(2), tmp_path, templates=("{}", "{} can be heard"))
    assert prepared.split("fold1").captions(0) == ["dog", "dog can be heard"]


def test_wav_flac_and_mp3_are_read_like_ogg(make_esc, tmp_path):
    root = make_esc(6)
    for old, (format, ending) in zip(
        sorted((root / "audio").iterdir())[:3],
        [("WAV", "wav"), ("FLAC", "flac"), ("MP3", "mp3")],
        strict=True,
    ):
        signal, rate_hz = soundfile.read(old)
        new = old.with_suffix(f".{ending}")
        soundfile.write(new, np.stack([signal, signal], axis=1), rate_hz, format=format)
        old.unlink()
        edit(root / "meta" / "esc50.csv", old.name, new.name)
    prepared = open_esc(root, tmp_path)
    assert prepared.num_rejected == 0
    assert set(prepared.split("fold1+fold2").num_samples.tolist()) <= {
        40_000,
        40_008,
    }  # 5 s; Ogg has a little more


def write_nan(path) -> None:
    signal, rate_hz = soundfile.read(path)
    signal[100] = np.nan
    soundfile.write(path, signal, rate_hz, format="WAV", subtype="FLOAT")


FAULTS = {
    "missing: there is no such file": lambda path: path.unlink(),
    "empty: the file has 0 bytes": lambda path: path.write_bytes(b""),
    "empty: it has a header and no samples": lambda path: soundfile.write(
        path, np.zeros(0), 44_100, format="WAV"
    ),
    "truncated: its last Ogg page": lambda path: path.write_bytes(path.read_bytes()[:20_000]),
    "corrupt: the Ogg page at byte": lambda path: path.write_bytes(
        path.read_bytes()[:9000] + bytes(8) + path.read_bytes()[9008:]
    ),
    "not audio: an HTML page": lambda path: path.write_text("<html>404</html>"),
    "not finite: 1 of": write_nan,
}


def test_every_broken_recording_is_counted_and_named(make_esc, tmp_path, caplog):
    root = make_esc(20)
    paths = sorted((root / "audio").iterdir())
    broken = dict(zip(FAULTS, paths[::2], strict=False))
    for reason, path in broken.items():
        FAULTS[reason](path)
    with caplog.at_level(logging.WARNING):
        prepared = open_esc(root, tmp_path, max_bad_fraction=0.5)
    assert prepared.num_rejected == len(FAULTS)
    rejects = [json.loads(line) for line in (prepared.folders[0] / "rejects.jsonl").read_text().splitlines()]
    assert {reject["path"] for reject in rejects} == {f"audio/{path.name}" for path in broken.values()}
    for reason, path in broken.items():
        (found,) = [reject["reason"] for reject in rejects if reject["path"] == f"audio/{path.name}"]
        assert found.startswith(reason)
    kept = {path.name for path in paths} - {path.name for path in broken.values()}
    assert set(prepared.split("fold1+fold2").ids) == kept
    assert (
        f"esc50: {len(FAULTS)} of 20 recordings rejected; {prepared.folders[0] / 'rejects.jsonl'}"
        in caplog.text
    )

    with pytest.raises(
        DataError, match=r"7 of 20 recordings were rejected, more than max_bad_fraction=0\.1 allows"
    ):
        open_esc(root, tmp_path, max_bad_fraction=0.1)  # the data set is there; it is still too bad


def test_too_many_broken_recordings_stop_the_build(make_esc, tmp_path):
    root = make_esc(10)
    for path in sorted((root / "audio").iterdir())[:3]:
        path.write_bytes(b"")
    message = r"3 of 10 recordings are bad so far, more than max_bad_fraction=0\.2 allows"
    with pytest.raises(DataError, match=message) as error:
        open_esc(root, tmp_path, max_bad_fraction=0.2)
    (rejects,) = (tmp_path / "esc50").glob("*/*/rejects.jsonl")
    assert len(rejects.read_text().splitlines()) == 3
    assert str(rejects) in str(error.value)
    assert not list((tmp_path / "esc50").glob("*/*/manifest.json"))


def test_a_split_without_a_usable_recording_is_an_error(make_esc, tmp_path):
    root = make_esc(4)
    for path in (root / "audio").glob("2-*"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="all 2 recordings of split 'fold2' were rejected"):
        open_esc(root, tmp_path, max_bad_fraction=0.9)


def test_an_empty_caption_is_rejected(make_esc, tmp_path):
    root = make_esc(4)
    table = root / "meta" / "esc50.csv"
    table.write_text(table.read_text().replace(",dog,", ", \u200b,"))
    with pytest.raises(DataError, match="empty caption"):
        open_esc(root, tmp_path)


def test_a_long_recording_is_kept_whole(make_esc, tmp_path):
    root = make_esc(2)
    path = min((root / "audio").iterdir())
    soundfile.write(path, np.zeros(70 * 8_000), 8_000, format="WAV")
    assert open_esc(root, tmp_path).split("fold1").num_samples.tolist() == [70 * 8_000]


def test_a_title_without_words_falls_back_to_the_class(make_esc, tmp_path, caplog):
    root = make_esc(2, with_freesound=True)
    edit(root / "meta" / "freesound.csv", "rose_bark.wav", "20110503_00.wav")
    prepared = open_esc(root, tmp_path, captions="title")
    assert prepared.split("fold1").captions(0) == ["This is a sound of dog."]
    assert "1 titles without a word in them, replaced by the class" in caplog.text


@pytest.mark.parametrize("missing", ["", "audio", "meta/esc50.csv"])
def test_a_missing_folder_or_table_says_what_is_expected(make_esc, tmp_path, missing):
    root = make_esc(2)
    if missing.endswith("csv"):
        (root / missing).unlink()
    else:
        shutil.rmtree(root / missing)
    with pytest.raises(UserError, match=r"no such (folder|file); expected the published layout: audio/"):
        open_esc(root, tmp_path)
    assert not (tmp_path / "esc50").exists()


def test_titles_without_freesound_csv_are_an_error(make_esc, tmp_path):
    with pytest.raises(UserError, match=r"freesound\.csv: no such file; captions=title needs it"):
        open_esc(make_esc(2), tmp_path, captions="title")


@pytest.mark.parametrize("column", ["filename", "fold", "target", "category", "esc10"])
def test_a_missing_column_is_named(make_esc, tmp_path, column):
    root = make_esc(2, without_columns=[column])
    with pytest.raises(DataError, match=rf"esc50\.csv:1: no column '{column}'; found the columns "):
        open_esc(root, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "1-110389-A.ogg",
            "1-100032-A.ogg",
            r"esc50\.csv:3: filename '1-100032-A\.ogg' is already on line 2",
        ),
        (
            "1-110389-A.ogg",
            "../meta/esc50.csv",
            r"esc50\.csv:3: filename is '\.\./meta/esc50\.csv', expected a path",
        ),
        (
            "1-110389-A.ogg",
            "/etc/hostname",
            r"esc50\.csv:3: filename is '/etc/hostname', expected a path inside",
        ),
        ("1-110389-A.ogg,1", "1-110389-A.ogg,one", r"esc50\.csv:3: fold is 'one', expected a whole number"),
        (
            "1-110389-A.ogg,1,0",
            "1-110389-A.ogg,1,-1",
            r"esc50\.csv:3: target is '-1', expected a whole number",
        ),
        (
            "1,0,dog",
            "1,0,cat",
            r"esc50\.csv:3: category is 'dog', expected 'cat', which line 2 gives to target 0",
        ),
        ("True", "yes", r"esc50\.csv:2: esc10 is 'yes', expected True or False"),
    ],
)
def test_a_bad_cell_is_named_by_file_line_and_column(make_esc, tmp_path, old, new, message):
    root = make_esc(4)
    edit(root / "meta" / "esc50.csv", old, new)
    with pytest.raises(DataError, match=message):
        open_esc(root, tmp_path)


def test_a_subset_without_rows_is_an_error(make_esc, tmp_path):
    root = make_esc(2)
    (root / "meta" / "esc50.csv").write_text(
        (root / "meta" / "esc50.csv").read_text().replace("True", "False")
    )
    with pytest.raises(DataError, match="no row has esc10 = True; use subset esc50"):
        open_esc(root, tmp_path, subset="esc10")


def test_templates_need_one_gap():
    for templates in ((), ("a sound",), ("{} and {}",)):
        with pytest.raises(UserError, match=r"each with exactly one \{\}"):
            Esc50Config(root="x", templates=templates)
