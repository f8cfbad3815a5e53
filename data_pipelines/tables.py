"""Tables of metadata, read strictly: every error names the file, the line and the column.

CSV, TSV, JSON Lines and Parquet. A cell is a text, or in JSON Lines and Parquet also a number, a list or a mapping;
an empty cell is '' or None.
"""

import contextlib
import csv
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from alm_jax.errors import DataError
from data_pipelines.parquet import read_parquet

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table, with its place."""

    path: Path
    line: int
    """Line number from 1; in Parquet, the number of the row."""
    cells: Mapping[str, Any]

    def __getitem__(self, column: str) -> Any:
        return self.cells[column]

    def fail(self, column: str, expected: str) -> DataError:
        """Returns the error that this row's ``column`` is not what was expected."""
        shown = repr(self.cells.get(column))
        shown = shown if len(shown) <= 200 else f"{shown[:200]}... ({len(shown)} characters)"
        return DataError(f"{self.path}:{self.line}: {column} is {shown}, expected {expected}")


def read_table(path: Path) -> Iterator[Row]:
    """Yields the rows of a table of any of ``TABLE_SUFFIXES``, in order.

    Raises DataError for one that cannot be read; the message has the file, and the line where there is one.
    """
    match path.suffix.lower():
        case ".csv":
            yield from iterate_csv(path)
        case ".tsv":
            yield from iterate_csv(path, delimiter="\t")
        case ".jsonl" | ".ndjson":
            yield from read_json_lines(path)
        case ".parquet":
            yield from (Row(path, number + 1, cells) for number, cells in enumerate(read_parquet(path)))
        case _:
            raise DataError(f"{path}: not a table; expected one of {', '.join(TABLE_SUFFIXES)}")


def read_csv(
    path: Path,
    *,
    columns: Sequence[str] = (),
    unique: str | None = None,
    delimiter: str = ",",
    encoding: str = "utf-8-sig",
) -> list[Row]:
    """Yields the rows of a CSV with a header line; a byte-order mark and CRLF line ends are accepted.

    Args:
      columns: columns that must exist.
      unique: a column whose cells must not be empty, and must all differ.

    Raises:
      DataError: no such file, not in ``encoding``, no header or one that names a column twice, a column of
        ``columns`` that is not there, a row with more or fewer cells than the header, an empty or repeated value in
        the column ``unique``, no rows.
    """
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for row in iterate_csv(path, columns=columns, delimiter=delimiter, encoding=encoding):
        if unique is not None:
            _check_unique(row, unique, seen)
        rows.append(row)
    return rows


def iterate_csv(
    path: Path, *, columns: Sequence[str] = (), delimiter: str = ",", encoding: str = "utf-8-sig"
) -> Iterator[Row]:
    """The rows of a CSV as `read_csv` has them, one at a time."""
    num_rows = 0
    with _open_text(path, columns, encoding, newline="") as file:
        reader = csv.reader(file, strict=True, delimiter=delimiter)
        try:
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header, columns)
            line = reader.line_num + 1
            for cells in reader:
                if cells:
                    if len(cells) != len(header):
                        raise DataError(
                            f"{path}:{line}: {len(cells)} cells, the header has {len(header)} columns"
                        )
                    yield Row(path, line, dict(zip(header, cells, strict=True)))
                    num_rows += 1
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not a readable table: {error}") from error
    if not num_rows:
        raise DataError(f"{path}: it has a header and no rows")


def read_json_lines(path: Path) -> Iterator[Row]:
    """Yields the rows of a file with a JSON object a line; empty lines are skipped."""
    num_rows = 0
    with _open_text(path, (), "utf-8-sig", newline="\n") as file:
        for number, text in enumerate(file, start=1):
            if text.strip():
                yield Row(path, number, parse_json_object(text, f"{path}:{number}"))
                num_rows += 1
    if not num_rows:
        raise DataError(f"{path}: it has no rows")


def parse_json_object(text: str | bytes, where: str) -> dict[str, Any]:
    """Parses a JSON object. Raises DataError, which begins with ``where``, for anything else."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise DataError(f"{where}: not readable JSON: nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, and numbers of thousands of digits
        raise DataError(f"{where}: not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(
            f'{where}: expected a JSON object, such as {{"caption": ...}}, found {type(value).__name__}'
        )
    return value


@contextlib.contextmanager
def _open_text(path: Path, columns: Sequence[str], encoding: str, *, newline: str) -> Iterator[TextIO]:
    """The text of a table, to be read line by line; what is wrong with the file is a DataError."""
    try:
        file = open(path, encoding=encoding, newline=newline)  # noqa: SIM115
    except OSError as error:
        if path.is_symlink() or not isinstance(error, FileNotFoundError):
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        wanted = f"; it must have the columns {', '.join(columns)}" if columns else ""
        raise DataError(f"{path}: no such file{wanted}") from error
    with file:
        try:
            yield file
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise _not_text(path, encoding) from error


def _not_text(path: Path, encoding: str) -> DataError:
    """The error that a table is not in its encoding, and where: the file is read whole to find the place."""
    content = path.read_bytes()
    try:
        content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        return DataError(f"{path}:{line}: not UTF-8 (byte {error.start}); save the table as UTF-8")
    return DataError(f"{path}: it changed while it was read")


def _check_header(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(
            f"{path}:1: no column {', '.join(map(repr, missing))}; "
            f"found the columns {', '.join(header) or '(none)'}"
        )
    twice = [column for column in header if header.count(column) > 1]
    if twice:
        raise DataError(f"{path}:1: the column {twice[0]!r} occurs twice; give each column its own name")


def _check_unique(row: Row, column: str, seen: dict[str, int]) -> None:
    value = row[column]
    if not value.strip():
        raise row.fail(column, "a value")
    if value in seen:
        raise DataError(
            f"{row.path}:{row.line}: {column} {value!r} is already on line {seen[value]}; "
            "every row must be a different one"
        )
    seen[value] = row.line
