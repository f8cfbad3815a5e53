"""CSV metadata: what is tolerated, and where a complaint points."""

from pathlib import Path

import pytest

from alm_jax.errors import DataError
from data_pipelines.paths import resolve_inside
from data_pipelines.tables import Row, read_csv


def read(path: Path, content: bytes) -> list[Row]:
    (path / "table.csv").write_bytes(content)
    return read_csv(path / "table.csv", columns=("filename", "fold"), unique="filename")


@pytest.mark.parametrize(
    "content",
    [
        b"filename,fold\na.wav,1\nb.wav,2\n",
        b"\xef\xbb\xbffilename,fold\r\na.wav,1\r\nb.wav,2\r\n",
        b"fold,extra,filename\n1,x,a.wav\n\n2,,b.wav",
        b'filename,fold\n"a.wav",1\n"b.wav","2"\n',
    ],
)
def test_byte_order_marks_line_ends_and_column_order_do_not_matter(tmp_path, content):
    rows = read(tmp_path, content)
    assert [(row["filename"], row["fold"]) for row in rows] == [("a.wav", "1"), ("b.wav", "2")]


def test_lines_are_counted_through_quoted_line_breaks_and_commas(tmp_path):
    rows = read(tmp_path, b'filename,fold,title\na.wav,1,"two\nlines, and a comma"\n\nb.wav,2,x\n')
    assert [row.line for row in rows] == [2, 5]
    assert rows[0]["title"] == "two\nlines, and a comma"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"filename,split\na.wav,1\n", r"table\.csv:1: no column 'fold'; found the columns filename, split$"),
        (b"", r"table\.csv:1: no column 'filename', 'fold'; found the columns \(none\)$"),
        (b"filename,fold\n", r"table\.csv: it has a header and no rows$"),
        (b"filename,fold\na.wav,1\nb.wav\n", r"table\.csv:3: 1 cells, the header has 2 columns$"),
        (b"filename,fold\na.wav,1\n\nb.wav,2,3\n", r"table\.csv:4: 3 cells, the header has 2 columns$"),
        (b"filename,fold\na.wav,1\n  ,2\n", r"table\.csv:3: filename is '  ', expected a value$"),
        (
            b"filename,fold\na.wav,1\nb.wav,1\na.wav,2\n",
            r"table\.csv:4: filename 'a\.wav' is already on line 2",
        ),
        (b"filename,fold\ncaf\xe9.wav,1\n", r"table\.csv:2: not UTF-8 \(byte 17\); save the table as UTF-8$"),
        (b'filename,fold\n"a.wav,1\n', r"table\.csv:\d: not a readable table: unexpected end of data$"),
    ],
)
def test_a_complaint_names_the_file_and_the_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, content)


def test_a_missing_table_says_what_it_should_have(tmp_path):
    with pytest.raises(DataError, match=r"table\.csv: no such file; it must have the columns filename, fold"):
        read_csv(tmp_path / "table.csv", columns=("filename", "fold"), unique="filename")


def test_paths_stay_inside_the_root(tmp_path):
    root = tmp_path / "audio"
    (root / "deeper").mkdir(parents=True)
    (tmp_path / "secret.wav").touch()
    (root / "link.wav").symlink_to(tmp_path / "secret.wav")
    (root / "inner.wav").symlink_to(root / "deeper")

    def resolve(name: str) -> Path:
        return resolve_inside(root, name, Row(Path("table.csv"), 7, {"filename": name}), "filename")

    for name in ("a.wav", "deeper/b.wav", "deeper/../a.wav", "inner.wav", "..a.wav"):
        assert resolve(name) == root / name
    for name in ("../secret.wav", "/etc/passwd", "deeper/../../secret.wav", "link.wav", "..\\secret.wav"):
        with pytest.raises(DataError, match=r"table\.csv:7: filename is .*, expected a path inside"):
            resolve(name)
