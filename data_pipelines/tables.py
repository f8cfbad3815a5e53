"""CSV metadata, read strictly: every complaint names the file, the line and the column."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from alm_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table, and where it is from."""

    path: Path
    line: int
    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def fail(self, column: str, expected: str) -> DataError:
        """The error that this row's ``column`` is not what was expected."""
        return DataError(f"{self.path}:{self.line}: {column} is {self[column]!r}, expected {expected}")


def read_csv(path: Path, *, columns: Sequence[str], unique: str) -> list[Row]:
    """The rows of a UTF-8 CSV with a header line; a byte-order mark and CRLF line ends are fine.

    Raises:
      DataError: no such file, not UTF-8, no header, a column of ``columns`` that is not there, a row with
        more or fewer cells than the header, an empty or repeated value in the column ``unique``, no rows.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; it must have the columns {', '.join(columns)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 (byte {error.start}); save the table as UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    seen: dict[str, int] = {}
    try:
        header = next(reader, [])
        missing = [column for column in columns if column not in header]
        if missing:
            raise DataError(
                f"{path}:1: no column {', '.join(map(repr, missing))}; "
                f"found the columns {', '.join(header) or '(none)'}"
            )
        line = reader.line_num + 1
        for cells in reader:
            if cells:
                if len(cells) != len(header):
                    raise DataError(
                        f"{path}:{line}: {len(cells)} cells, the header has {len(header)} columns"
                    )
                row = Row(path, line, dict(zip(header, cells, strict=True)))
                if not row[unique].strip():
                    raise row.fail(unique, "a value")
                if row[unique] in seen:
                    raise DataError(
                        f"{path}:{line}: {unique} {row[unique]!r} is already on line {seen[row[unique]]}; "
                        "every row must be a different one"
                    )
                seen[row[unique]] = line
                rows.append(row)
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not a readable CSV: {error}") from error
    if not rows:
        raise DataError(f"{path}: it has a header and no rows")
    return rows


def resolve_inside(root: Path, name: str, row: Row, column: str) -> Path:
    """``root / name``, refused where it is absolute, climbs out by ``..``, or is a link that leads out."""
    path = root / name
    if PurePosixPath(name).is_absolute() or "\\" in name or "\0" in name:
        raise row.fail(column, f"a path inside {root}")
    if not path.resolve().is_relative_to(root.resolve()):
        raise row.fail(column, f"a path inside {root}")
    return path
