"""Rows that wait on disk: a plan of many takes the memory of a few."""

import gc
from pathlib import Path

import pytest

from alm_jax.errors import DataError
from data_pipelines.build import BuildSpec, _plan
from data_pipelines.datasets.recordings import RecordingsConfig
from data_pipelines.row_store import RowStore, place_of
from data_pipelines.source import AudioFile, SourceRow
from data_pipelines.tables import Row


def make_row(name: str, *, id: str = "", split: str = "") -> SourceRow:
    return SourceRow(id=id, audio=AudioFile(Path(name)), captions=(name,), split=split, source=name)


def test_rows_keep_their_order_and_are_joined_by_recording():
    rows = RowStore()
    for name in ("b", "a", "c"):
        assert rows.find_same(make_row(name)) is None
        rows.add(make_row(name), (name, f"long {name}"))
    number, first = rows.find_same(make_row("a"))
    assert (number, first.captions) == (1, ("a",))
    rows.replace(number, make_row("a", split="x"))
    rows.name_rows(1)
    assert [row.id for row in rows] == ["long b", "long a", "long c"]
    assert (rows[1].id, rows[-1].id, [row.source for row in rows[:2]]) == ("long a", "long c", ["b", "a"])
    assert rows.repeated_id() is None
    with pytest.raises(IndexError):
        rows[3]


def test_the_first_repeated_id_is_found_with_its_rows():
    rows = RowStore()
    for source, name in (("1", "z"), ("2", "b"), ("3", "a"), ("4", "b"), ("5", "a")):
        rows.add(make_row(source, id=name), ())
    name, first, second = rows.repeated_id()
    assert (name, first.source, second.source) == ("b", "2", "4")
    assert rows.find_same(make_row("1", id="z")) is None  # an id keeps rows apart


def test_splits_are_by_the_place_of_the_id():
    rows = RowStore()
    for number in range(50):
        rows.add(make_row(str(number), id=f"clip {number}"), ())
    assert rows.without_split() == (50, "clip 0")
    rows.split_by_hash(0.2)
    for row in rows:
        assert row.split == ("test" if place_of(row.id) < 0.2 else "train")
    assert sum(rows.count_splits().values()) == 50
    assert rows.without_split() == (0, "")


def write_table(path: Path, num_rows: int) -> Path:
    with open(path, "w") as file:
        file.write("file,text\n")
        file.writelines(f"sounds/{i:06d}.wav,a recording of something number {i}\n" for i in range(num_rows))
    return path


def count_rows() -> int:
    """Rows of tables and of data sets that are objects of this process."""
    gc.collect()
    return sum(type(found) in (SourceRow, Row) for found in gc.get_objects())


def test_no_row_stays_in_memory(tmp_path):
    path = write_table(tmp_path / "my.csv", 1_200)
    before = count_rows()
    source = RecordingsConfig(path=str(path)).read()
    assert count_rows() == before
    rows = iter(source.rows)
    kept = [next(rows), next(rows)]
    assert count_rows() == before + len(kept)
    spec = BuildSpec(name="x", folder=tmp_path / "built", sample_rate_hz=16_000, rows_per_shard=100)
    shards = _plan(spec, source)
    assert sum(shard.num_rows for shard in shards) == len(source.rows) == 1_200
    assert count_rows() == before + len(kept)


def test_a_table_that_is_no_text_far_inside_is_named_by_its_line(tmp_path):
    path = write_table(tmp_path / "a.csv", 3_000)
    with open(path, "ab") as file:
        file.write(b"x.wav,caf\xe9\n")
    with pytest.raises(DataError, match=rf"{path}:3002: not UTF-8 \(byte \d+\); save the table as UTF-8"):
        RecordingsConfig(path=str(path)).read()
