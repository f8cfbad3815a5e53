"""The index of a split: everything in its records except the audio, as a memory-mapped Arrow file.

The file is an Arrow IPC file of record batches of `ROWS_PER_BATCH` rows (the last may be shorter), mapped into
memory: opening it reads its footer, and a row is read when it is asked for. Python memory does not grow with the
number of rows, except for one small object for every `ROWS_PER_BATCH` rows that were read.

===============  =================  ==================================================================
column           type               meaning
===============  =================  ==================================================================
id               large_string       unique in the data set
captions         list of strings    one or more
negatives        list of strings    captions that are nearly right and wrong
labels           list of int32      classes, numbers of ``class_names``; none, one or several
num_samples      int64              length of the recording at the stored sampling rate
record           int64              number of its first record in the split (`data_pipelines.records`)
licence          int16              number of the licence in ``licences`` of the summary
source_sha256    fixed binary 32    of the file that it was made from; null where there is none
===============  =================  ==================================================================
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from alm_jax.errors import DataError

Value = TypeVar("Value")

ROWS_PER_BATCH = 1 << 16
"""Rows of a record batch: Python holds one object of the index for each batch."""

SCHEMA = pa.schema(
    [
        ("id", pa.large_string()),
        ("captions", pa.large_list(pa.large_string())),
        ("negatives", pa.large_list(pa.large_string())),
        ("labels", pa.large_list(pa.int32())),
        ("num_samples", pa.int64()),
        ("record", pa.int64()),
        ("licence", pa.int16()),
        ("source_sha256", pa.binary(32)),
    ]
)


class IndexWriter:
    """Writes an index row by row, or from the indexes of its pieces; a context manager."""

    def __init__(self, path: Path) -> None:
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, SCHEMA)
        self._rows: list[dict[str, Any]] = []
        self._parts: list[pa.RecordBatch] = []
        self._num_waiting = 0

    def __enter__(self) -> "IndexWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._collect()
        self._write(whole_batches_only=False)
        self._writer.close()
        self._file.close()

    def add(self, row: dict[str, Any]) -> None:
        """Adds one row, given as values by column name."""
        self._rows.append(row)
        if len(self._rows) == ROWS_PER_BATCH:
            self._collect()

    def extend(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Adds rows that are already in Arrow form."""
        for batch in batches:
            self._parts.append(batch)
            self._num_waiting += batch.num_rows
            self._write(whole_batches_only=True)

    def _collect(self) -> None:
        if self._rows:
            rows, self._rows = self._rows, []
            self.extend([pa.RecordBatch.from_pylist(rows, schema=SCHEMA)])

    def _write(self, *, whole_batches_only: bool) -> None:
        if not self._num_waiting or (whole_batches_only and self._num_waiting < ROWS_PER_BATCH):
            return
        table = pa.Table.from_batches(self._parts).combine_chunks()
        whole = len(table) // ROWS_PER_BATCH * ROWS_PER_BATCH if whole_batches_only else len(table)
        for start in range(0, whole, ROWS_PER_BATCH):
            (batch,) = table.slice(start, min(ROWS_PER_BATCH, whole - start)).combine_chunks().to_batches()
            self._writer.write_batch(batch)
        self._parts = table.slice(whole).to_batches()
        self._num_waiting = len(table) - whole


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """An index on disk. Raises DataError with the remedy where the file is not complete."""

    path: Path
    num_rows: int
    """What the data set's summary states of it."""

    def __len__(self) -> int:
        return self.num_rows

    def __reduce__(self) -> tuple[Any, ...]:  # another process maps the file itself
        return Index, (self.path, self.num_rows)

    @functools.cached_property
    def _reader(self) -> pa.RecordBatchFileReader:
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
        except (OSError, pa.ArrowInvalid) as error:
            raise self._damaged(str(error)) from error
        if not reader.schema.equals(SCHEMA):
            raise self._damaged(f"its columns are {', '.join(reader.schema.names)}")
        if reader.num_record_batches != -(-self.num_rows // ROWS_PER_BATCH):
            raise self._damaged(
                f"it has {reader.num_record_batches} batches of rows for {self.num_rows} rows"
            )
        return reader

    def check(self) -> None:
        """Raises DataError where the file is cut off or is not an index."""
        _ = self._reader

    def _damaged(self, found: str) -> DataError:
        return DataError(
            f"the index {self.path} is damaged ({found}); delete the folder {self.path.parents[1]}, and the data set "
            "is built again"
        )

    @functools.cached_property
    def _batches(self) -> dict[int, pa.RecordBatch]:
        return {}

    def batch(self, number: int) -> pa.RecordBatch:
        """Rows from ``number * ROWS_PER_BATCH`` on."""
        if number not in self._batches:
            try:
                self._batches[number] = self._reader.get_batch(number)
            except (OSError, pa.ArrowInvalid) as error:
                raise self._damaged(str(error)) from error
        return self._batches[number]

    @property
    def num_batches(self) -> int:
        """Number of record batches of the file."""
        return int(self._reader.num_record_batches)

    def value(self, column: str, row: int) -> Any:
        """Returns the value of one row as a Python object."""
        batch, place = divmod(row, ROWS_PER_BATCH)
        return self.batch(batch).column(column)[place].as_py()

    def numbers(self, column: str, rows: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        """Returns the values of several rows of a column of numbers."""
        found = np.empty(len(rows), np.int64)
        batches, places = np.divmod(rows, ROWS_PER_BATCH)
        for number in np.unique(batches).tolist():
            here = batches == number
            found[here] = self.batch(number).column(column).to_numpy()[places[here]]
        return found

    def single_values(self, column: str, rows: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        """Returns, for each row of a column of lists of numbers, the only number of the list, and -1 where the list
        has none or several."""
        found = np.full(len(rows), -1, np.int64)
        batches, places = np.divmod(rows, ROWS_PER_BATCH)
        for number in np.unique(batches).tolist():
            here = np.flatnonzero(batches == number)
            lists = self.batch(number).column(column)
            offsets, values = lists.offsets.to_numpy(), lists.values.to_numpy()
            first = offsets[places[here]]
            single = offsets[places[here] + 1] - first == 1
            found[here[single]] = values[first[single]]
        return found


class Column(Sequence[Value], Generic[Value]):
    """A column of a split: a sequence whose values are read from disk on access."""

    def __init__(self, length: int, read: Any) -> None:
        self._length = length
        self._read = read

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Value: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Value]: ...

    def __getitem__(self, index: int | slice) -> Value | Sequence[Value]:
        if isinstance(index, slice):
            return tuple(self._read(place) for place in range(*index.indices(self._length)))
        place = int(index)
        if not -self._length <= place < self._length:
            raise IndexError(f"row {place} of {self._length}")
        value: Value = self._read(place % self._length)
        return value

    def __iter__(self) -> Iterator[Value]:
        return map(self._read, range(self._length))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]
