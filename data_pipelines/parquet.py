"""Parquet tables: cells as Python values; recordings stored in cells are read on demand."""

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alm_jax.errors import DataError
from data_pipelines.source import LongRecording, Recording, file_state, read_encoded

_BATCH_ROWS = 1024
_KEPT_GROUPS = 4  # threads read neighbouring rows, so that each group is read about once


@dataclasses.dataclass(frozen=True, slots=True)
class AudioCell:
    """A recording whose file is a cell of a Parquet table: bytes, or ``{bytes, path}`` as ``datasets`` stores it."""

    path: Path
    """Path of the table."""
    column: str
    group: int
    """Number of the row group."""
    row: int
    """Number of the row in its group."""

    def content(self) -> bytes:
        """Implements ``source.Audio.content``."""
        cell = _read_group(self.path, self.column, self.group)[self.row].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if data is None:
            raise DataError("missing: the cell of the table has no bytes")
        return bytes(data)

    def read(
        self, sample_rate_hz: int, *, start_sec: float = 0.0, end_sec: float | None = None
    ) -> Recording | LongRecording:
        """Implements ``source.Audio.read``."""
        return read_encoded(self.content(), sample_rate_hz, start_sec=start_sec, end_sec=end_sec)

    def state(self) -> object:
        """Implements ``source.Audio.state``."""
        return file_state(self.path), self.column, self.group, self.row


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a table. Raises DataError where it cannot be read.

    A column of bytes, or of ``{bytes, path}``, gives an `AudioCell`; the path stored beside the bytes becomes the
    cell ``NAME.path``. Class numbers whose names the table states, as ``datasets`` writes them, become the names.
    """
    import pyarrow
    from pyarrow import parquet, types

    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            names = _class_names(schema.metadata or {})
            audio = [field.name for field in schema if _holds_bytes(field.type, types)]
            others = [field.name for field in schema if field.name not in audio]
            # Of a recording only the path is read: its bytes stay in the file.
            paths = [f"{name}.path" for name in audio if types.is_struct(schema.field(name).type)]
            for group in range(file.num_row_groups):
                number = 0
                batches = file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[*others, *paths])
                if not others and not paths:
                    batches = _empty_batches(file.metadata.row_group(group).num_rows)
                for batch in batches:
                    for cells in batch.to_pylist():
                        for name in audio:
                            cell = cells.get(name)
                            stored = cell.get("path") if isinstance(cell, dict) else None
                            cells[name] = AudioCell(path, name, group, number)
                            cells[f"{name}.path"] = stored or ""
                        for name, values in names.items():
                            if isinstance(cells.get(name), int) and 0 <= cells[name] < len(values):
                                cells[name] = values[cells[name]]
                        yield cells
                        number += 1
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not a readable Parquet table: {error}") from error


def _empty_batches(num_rows: int) -> list[Any]:
    import pyarrow

    return [pyarrow.RecordBatch.from_pylist([{"": None}] * num_rows)]


def _holds_bytes(kind: Any, types: Any) -> bool:
    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type, types) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Returns the class names by column, from what ``datasets`` writes beside the schema."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {name: list(feature["names"]) for name, feature in features.items() if "names" in feature}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


@functools.lru_cache(maxsize=_KEPT_GROUPS)
def _read_group(path: Path, column: str, group: int) -> Any:
    """Reads a column of a row group."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            return file.read_row_group(group, columns=[column]).column(column)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"unreadable: {error}") from error
