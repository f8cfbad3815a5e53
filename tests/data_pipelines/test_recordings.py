"""Recordings of one's own: every layout gives the same clips, and every fault its message."""

import csv
import dataclasses
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from alm_jax.errors import DataError, UserError
from data_pipelines.columns import ColumnsConfig
from data_pipelines.config import DataConfig, TokenizerConfig
from data_pipelines.datasets.recordings import RecordingsConfig
from data_pipelines.prepare import prepare
from data_pipelines.source import Source

NAMES = ("b-2", "a-1", "c-3", "d-4", "e-5", "f-6")


@pytest.fixture(scope="module")
def sounds() -> dict[str, bytes]:
    """The files of six short recordings, FLAC, each of its own length."""
    files = {}
    for number, name in enumerate(NAMES):
        file = io.BytesIO()
        signal = np.random.default_rng(number).uniform(-0.5, 0.5, 800 + 10 * number)
        soundfile.write(file, signal, 8000, format="FLAC")
        files[name] = file.getvalue()
    return files


def write_files(folder: Path, sounds: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in sounds.items():
        (folder / f"{name}.flac").write_bytes(content)


def caption(name: str) -> str:
    return f"the sound of {name[0]}, and no other"


def make_table(root: Path, sounds: dict[str, bytes], ending: str) -> Path:
    write_files(root, sounds)
    path = root / f"table.{ending}"
    rows = [{"filename": f"{name}.flac", "caption": caption(name)} for name in sorted(sounds)]
    if ending in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if ending == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=4)
    return path


def make_pairs(root: Path, sounds: dict[str, bytes], ending: str) -> Path:
    write_files(root, sounds)
    for name in sounds:
        text = caption(name) if ending == "txt" else json.dumps({"text": caption(name)})
        (root / f"{name}.{ending}").write_text(text)
    return root


def make_audio_folder(root: Path, sounds: dict[str, bytes], ending: str) -> Path:
    make_table(root, sounds, ending).rename(root / f"metadata.{ending}")
    path = root / f"metadata.{ending}"
    path.write_text(path.read_text().replace("filename", "file_name").replace("caption", "text"))
    return root


def make_parquet(root: Path, sounds: dict[str, bytes], _: str) -> Path:
    root.mkdir()
    rows = [
        {"audio": {"bytes": sounds[name], "path": f"{name}.flac"}, "text": caption(name)}
        for name in sorted(sounds)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), root / "0000.parquet", row_group_size=4)
    return root


def make_tars(root: Path, sounds: dict[str, bytes], ending: str) -> Path:
    root.mkdir()
    names = sorted(sounds)
    for number, part in enumerate((names[:4], names[4:])):
        with tarfile.open(root / f"{number:06d}.tar", "w") as tar:
            for name in part:
                text = caption(name) if ending == "txt" else json.dumps({"text": caption(name)})
                for suffix, content in ((ending, text.encode()), ("FLAC", sounds[name])):
                    member = tarfile.TarInfo(f"./{name}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return root


LAYOUTS = [
    (make_table, "csv"),
    (make_table, "tsv"),
    (make_table, "jsonl"),
    (make_table, "parquet"),
    (make_pairs, "txt"),
    (make_pairs, "json"),
    (make_audio_folder, "csv"),
    (make_audio_folder, "jsonl"),
    (make_parquet, ""),
    (make_tars, "txt"),
    (make_tars, "json"),
]


@pytest.mark.parametrize(("make", "ending"), LAYOUTS, ids=lambda x: getattr(x, "__name__", x))
def test_every_layout_gives_the_same_clips(tmp_path, sounds, make, ending):
    source = RecordingsConfig(path=str(make(tmp_path / "own", sounds, ending)), test_fraction=0.5).read()
    assert [row.id for row in source.rows] == sorted(NAMES)
    assert [row.captions for row in source.rows] == [(caption(name),) for name in sorted(NAMES)]
    assert [row.split for row in source.rows] == ["test", "test", "test", "train", "test", "test"]
    for row in source.rows:
        expected, _ = soundfile.read(io.BytesIO(sounds[row.id]), dtype="int16")
        assert np.array_equal(row.audio.read(8000).pcm, expected)
    assert any("by a hash of the id, 50% for testing" in line for line in source.found)


def write_table(tmp_path: Path, sounds: dict[str, bytes], *lines: str, name: str = "t.csv") -> Path:
    write_files(tmp_path, sounds)
    (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / name


def read(
    tmp_path: Path, sounds: dict[str, bytes], *lines: str, name: str = "t.csv", **settings: object
) -> Source:
    return RecordingsConfig(path=str(write_table(tmp_path, sounds, *lines, name=name)), **settings).read()


def test_all_columns_several_captions_and_labels(tmp_path, sounds):
    source = read(
        tmp_path,
        sounds,
        "\ufeffpath,caption_2,caption_1,caption_10,labels,split,license,start,end,id",
        'a-1.flac,two,one,,"dog;rain",train,CC0,0.01,0.05,x',
        "a-1.flac,second,first,tenth,rain,dev-clean,,,,y",
        label_separator=";",
        licence="CC-BY",
    )
    x, y = source.rows
    assert (x.id, x.split, x.licence, x.start_sec, x.end_sec) == ("x", "train", "CC0", 0.01, 0.05)
    assert (y.id, y.split, y.licence, y.start_sec, y.end_sec) == ("y", "dev_clean", "CC-BY", 0.0, None)
    assert x.captions == ("one", "two", "")  # the empty one is dropped, and counted, when the example is made
    assert y.captions == ("first", "second", "tenth")
    assert (x.labels, y.labels) == (("dog", "rain"), ("rain",))
    assert source.class_names == ("dog", "rain")
    assert "captions: columns caption_1, caption_2, caption_10" in source.found


def test_rows_of_one_recording_are_its_captions(tmp_path, sounds):
    source = read(
        tmp_path, sounds, "file,text", "a-1.flac,one", "b-2.flac,other", "a-1.flac,two", "a-1.flac,one"
    )
    assert {row.id: row.captions for row in source.rows} == {"a-1": ("one", "two"), "b-2": ("other",)}
    assert any("4 rows are 2 clips" in line for line in source.found)


def test_lists_in_json_and_ragged_rows(tmp_path, sounds):
    lines = [
        {"audio": "a-1.flac", "captions": ["one", "two"], "tags": ["x", "y"]},
        {"audio": "b-2.flac", "captions": "alone", "other": None},
    ]
    source = read(tmp_path, sounds, *map(json.dumps, lines), name="t.jsonl")
    assert [row.captions for row in source.rows] == [("one", "two"), ("alone",)]
    assert [row.labels for row in source.rows] == [("x", "y"), ()]


def test_columns_are_named_or_refused_in_the_config(tmp_path, sounds):
    lines = ("where,words,label", "a-1.flac,one,x", "b-2.flac,two,y")
    with pytest.raises(
        DataError, match=r"no column for the recordings; it has where, words, label\. Name it"
    ):
        read(tmp_path, sounds, *lines)
    columns = ColumnsConfig(audio="where", captions=("words",), labels="-")
    source = read(tmp_path, sounds, *lines, columns=columns)
    assert [(row.captions, row.labels) for row in source.rows] == [(("one",), ()), (("two",), ())]
    with pytest.raises(DataError, match=r"no column 'wrods', which columns\.captions names"):
        read(tmp_path, sounds, *lines, columns=dataclasses.replace(columns, captions=("wrods",)))


def test_folders_of_classes_make_captions_by_template(tmp_path, sounds):
    for name in NAMES:
        write_files(tmp_path / ("dog_bark" if name < "c" else "rain"), {name: sounds[name]})
    source = RecordingsConfig(path=str(tmp_path), templates=("{} is heard",)).read()
    assert {row.id: (row.labels, row.captions) for row in source.rows}["a-1"] == (
        ("dog_bark",),
        ("dog bark is heard",),
    )
    assert source.class_names == ("dog_bark", "rain")


def test_names_of_folders_are_splits_and_repeated_names_are_told_apart(tmp_path, sounds):
    for split in ("train", "valid"):
        make_pairs(tmp_path / split, {"a-1": sounds["a-1"], "b-2": sounds["b-2"]}, "txt")
    rows = RecordingsConfig(path=str(tmp_path)).read().rows
    assert {row.id: row.split for row in rows} == {
        "train/a-1": "train",
        "train/b-2": "train",
        "valid/a-1": "validation",
        "valid/b-2": "validation",
    }


def test_shards_of_parquet_name_their_split_and_classes(tmp_path, sounds):
    features = {"label": {"names": ["dog", "rain"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (tmp_path / "data").mkdir()
    for name, label, split in (("a-1", 1, "train"), ("b-2", 0, "test")):
        rows = [{"audio": {"bytes": sounds[name], "path": f"{name}.flac"}, "label": label}]
        table = pyarrow.Table.from_pylist(rows).replace_schema_metadata(metadata)
        pyarrow.parquet.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    rows = RecordingsConfig(path=str(tmp_path)).read().rows
    assert {row.id: (row.split, row.labels) for row in rows} == {
        "a-1": ("train", ("rain",)),
        "b-2": ("test", ("dog",)),
    }


def test_orphans_and_what_is_no_file_are_reported(tmp_path, sounds):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, content in (
            ("a.flac", sounds["a-1"]),
            ("a.txt", b"one\n\ntwo\n"),
            ("b.flac", sounds["b-2"]),
            ("b.json", b'{"caption": "three"}'),
            ("lonely.flac", b"x"),
            ("alone.txt", b"x"),
            ("a.png", b"x"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("c.flac")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    source = RecordingsConfig(path=str(tmp_path / "*.tar")).read()
    assert [row.captions for row in source.rows] == [("one", "two"), ("three",)]
    assert set(source.found) >= {
        "1 recordings in tars without a text, such as x.tar:lonely.flac",
        "1 texts in tars without a recording, such as x.tar:alone",
        "1 members of tars with another ending, such as x.tar:a.png",
        "1 members of tars that are links, devices or sparse, such as x.tar:c.flac",
    }


def test_the_same_names_in_several_tars_are_told_apart(tmp_path, sounds):
    for split in ("train", "test"):
        for shard in ("0", "1"):
            (tmp_path / split).mkdir(exist_ok=True)
            with tarfile.open(tmp_path / split / f"{shard}.tar", "w") as tar:
                for name, content in (("a.flac", sounds["a-1"]), ("a.txt", b"x")):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    source = RecordingsConfig(path=str(tmp_path)).read()
    assert {row.id: row.split for row in source.rows} == {
        f"{split}/{shard}.tar:a": split for split in ("train", "test") for shard in ("0", "1")
    }
    assert "ids: places, since paths come again" in source.found


def test_bytes_without_a_name_are_told_apart_by_their_row(tmp_path, sounds):
    rows = [{"audio": sounds["a-1"], "text": "x"}, {"audio": sounds["b-2"], "text": "y"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.b.parquet")
    source = RecordingsConfig(path=str(tmp_path / "a.b.parquet")).read()
    assert [row.id for row in source.rows] == ["a_b-000001", "a_b-000002"]


def test_few_clips_have_both_splits_and_one_clip_is_an_error(tmp_path, sounds):
    rows = read(tmp_path, sounds, "file,text", "a-1.flac,x", "b-2.flac,y", test_fraction=0.001).rows
    assert sorted(row.split for row in rows) == ["test", "train"]
    rows = read(tmp_path, sounds, "file,text", "a-1.flac,x", "b-2.flac,y", test_fraction=0.999).rows
    assert sorted(row.split for row in rows) == ["test", "train"]
    with pytest.raises(DataError, match="it has one clip; two are needed"):
        read(tmp_path, sounds, "file,text", "a-1.flac,x")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("file,text", "../a.flac,x"), r"t\.csv:2: file is '\.\./a\.flac', expected a path inside"),
        (("file,text", "/etc/passwd,x"), r"t\.csv:2: file is '/etc/passwd', expected a path inside"),
        (("file,text", ",x"), r"t\.csv:2: file is '', expected a path inside"),
        (("file,text,start", "a-1.flac,x,soon"), r"t\.csv:2: start is 'soon', expected seconds"),
        (
            ("file,text,start", f"a-1.flac,x,{'9' * 5000}"),
            r"t\.csv:2: start is '9{199}\.\.\. \(5002 characters\)",
        ),
        (
            ("file,text,start,end", "a-1.flac,x,3,2"),
            r"t\.csv:2: end is '2', expected more than the start, 3 s",
        ),
        (("file,text,split", "a-1.flac,x,a/b"), r"t\.csv:2: split is 'a/b', expected the name of a split"),
        (
            ("file,text,split", "a-1.flac,x,train", "b-2.flac,y,"),
            "1 of 2 clips have a split and others have none",
        ),
        (("file,text,id", "a-1.flac,x,1", "b-2.flac,y,1"), "the id '1' is that of a-1.flac and of b-2.flac"),
        (("file,text,id", "a-1.flac,x,"), r"t\.csv:2: id is '', expected a value"),
        (("file,file,text", "a,b,c"), r"t\.csv:1: the column 'file' occurs twice"),
        (("file,text", "a-1.flac,x,y"), r"t\.csv:2: 3 cells, the header has 2 columns"),
    ],
)
def test_a_bad_cell_is_named_by_file_line_and_column(tmp_path, sounds, lines, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, sounds, *lines)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", r"t\.jsonl:1: expected a JSON object, such as .*, found list"),
        ("{", r"t\.jsonl:1: not readable JSON"),
        ("[" * 100_000, r"t\.jsonl:1: not readable JSON: nested too deeply"),
        ('{"audio": ' + "9" * 5000 + "}", r"t\.jsonl:1: not readable JSON: "),
        ('{"audio": {"x": 1}, "text": "x"}', r"t\.jsonl:1: audio is \{'x': 1\}, expected a path"),
        ('{"audio": "\\ud800.wav", "text": "x"}', r"t\.jsonl:1: audio is '\\ud800\.wav', expected a path"),
        ('{"audio": "a-1.flac", "text": {"x": 1}}', r"t\.jsonl:1: text is \{'x': 1\}, expected a text"),
    ],
)
def test_bad_json_is_named_by_file_and_line(tmp_path, sounds, line, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, sounds, line, name="t.jsonl")


def test_damaged_tars_are_named(tmp_path, sounds):
    whole = (make_tars(tmp_path / "own", sounds, "txt") / "000000.tar").read_bytes()
    (tmp_path / "own" / "000001.tar").unlink()
    path = tmp_path / "own" / "000000.tar"
    for content in (
        whole[:1000],
        whole[: 3 * 512],
        whole[:1500] + b"\xff" * 600 + whole[2100:],
        b"",
        bytes(10240),
        b"<html>",
        whole[: -(-len(whole.rstrip(b"\0")) // 512) * 512],  # every member, and no end mark
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"000000\.tar: damaged or cut off|without a row"):
            RecordingsConfig(path=str(path)).read()
    path.write_bytes(b"\x1f\x8b" + whole)
    with pytest.raises(
        DataError, match="compressed by gzip, so that no member can be read alone; decompress it"
    ):
        RecordingsConfig(path=str(path)).read()


@pytest.mark.parametrize("make", ["nothing", "empty", "two tables", "a picture"])
def test_a_path_without_recordings_says_what_is_expected(tmp_path, make):
    path = tmp_path / "data"
    if make != "nothing":
        path.mkdir()
    for name in {"two tables": ["a.csv", "b.csv"], "a picture": ["a.png"]}.get(make, []):
        (path / name).touch()
    if make == "a picture":
        path = path / "a.png"
    with pytest.raises(UserError, match=r"[Ee]xpected a table"):
        RecordingsConfig(path=str(path)).read()


def test_links_of_the_hub_cache_are_followed_inside_it_only(tmp_path, sounds):
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "datasets--a--b" / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, name in enumerate(("a-1", "b-2")):
        (blobs / f"hash{number}").write_bytes(sounds[name])
        os.symlink(f"../../blobs/hash{number}", snapshot / f"{name}.flac")
    (blobs / "table").write_text("file_name,text\na-1.flac,one\nb-2.flac,two\n")
    os.symlink("../../blobs/table", snapshot / "metadata.csv")
    rows = RecordingsConfig(path=str(snapshot)).read().rows
    assert [len(row.audio.read(8000).pcm) for row in rows] == [810, 800]
    (tmp_path / "secret").write_bytes(sounds["c-3"])
    (snapshot / "a-1.flac").unlink()
    os.symlink(tmp_path / "secret", snapshot / "a-1.flac")
    with pytest.raises(
        DataError, match=r"it is a link to .*secret, and links are followed inside that folder only"
    ):
        RecordingsConfig(path=str(snapshot)).read()
    assert RecordingsConfig(path=str(snapshot), allow_outside_root=True).read().rows


def test_a_link_to_itself_and_an_endless_name_are_rejects(tmp_path, sounds):
    write_files(tmp_path, sounds)
    os.symlink("loop.flac", tmp_path / "loop.flac")
    os.symlink("nowhere.flac", tmp_path / "dangling.flac")
    (tmp_path / "folder.flac").mkdir()
    names = ["loop.flac", "dangling.flac", "n" * 400 + ".flac", "folder.flac", "absent.flac"]
    rows = read(tmp_path, sounds, "file,text", *(f"{name},x" for name in names)).rows
    reasons = []
    for row in rows:
        with pytest.raises(DataError) as caught:
            row.audio.read(8000)
        reasons.append(str(caught.value))
    assert reasons == [
        "missing: it is a link that leads to itself",
        "missing: it is a link to nowhere.flac, which does not exist",
        "unreadable: File name too long",
        "missing: it is a folder or a device, not a file",
        "missing: there is no such file",
    ]


def test_every_layout_is_built_to_the_same_fingerprint(tmp_path, sounds):
    fingerprints = set()
    for number, (make, ending) in enumerate(LAYOUTS[::3]):
        path = make(tmp_path / str(number), sounds, ending)
        config = DataConfig(
            dataset=RecordingsConfig(path=str(path), test_fraction=0.5),
            tokenizer=TokenizerConfig(vocab_size=300),
            source_sec=1.0,
            cache_dir=str(tmp_path / "cache"),
        )
        fingerprints.add(prepare(config, 8000).fingerprint)
    assert len(fingerprints) == 1
