"""Rows of a data set in a temporary database on disk, so that memory does not grow with their number.

The database is SQLite's, in a temporary file that is deleted with its rows, and keeps at most `CACHE_BYTES` in
memory. Rows are added one by one, and those of one recording are joined. Then each row gets a name and a split that
depend on all rows.
"""

import dataclasses
import hashlib
import pickle
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import overload

from data_pipelines.source import SourceRow

CACHE_BYTES = 32 << 20
"""Memory of the database, bytes."""


class RowStore(Sequence[SourceRow]):
    """Rows in the order in which they were added."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_BYTES >> 10}"):
            self._db.execute(f"PRAGMA {setting}")
        self._db.execute(
            "CREATE TABLE rows (number INTEGER PRIMARY KEY, key BLOB UNIQUE, id TEXT, split TEXT, names BLOB, row BLOB)"
        )
        self._db.create_function("name_of", 2, lambda names, i: pickle.loads(names)[i], deterministic=True)
        self._db.create_function("place_of", 1, place_of, deterministic=True)
        self._num_rows = 0

    def add(self, row: SourceRow, names: Sequence[str]) -> None:
        """Adds one row; ``names`` are the candidates for its id where it has none."""
        values = (self._num_rows, _key(row), row.id, row.split, pickle.dumps(list(names)), pickle.dumps(row))
        self._db.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)", values)
        self._num_rows += 1

    def find_same(self, row: SourceRow) -> tuple[int, SourceRow] | None:
        """Returns the row without an id that is the same stretch of the same recording, with its number; None where
        there is none."""
        found = self._db.execute("SELECT number, row FROM rows WHERE key = ?", (_key(row),)).fetchone()
        return found and (found[0], pickle.loads(found[1]))

    def replace(self, number: int, row: SourceRow) -> None:
        """Replaces a row."""
        self._db.execute("UPDATE rows SET row = ? WHERE number = ?", (pickle.dumps(row), number))

    def name_rows(self, choice: int) -> None:
        """Sets each row's id to its name of this number."""
        self._db.execute("UPDATE rows SET id = name_of(names, ?)", (choice,))

    def repeated_id(self) -> tuple[str, SourceRow, SourceRow] | None:
        """Returns an id that several rows have, and the first two of them; None where all ids differ."""
        self._db.execute("CREATE INDEX IF NOT EXISTS by_id ON rows (id)")
        query = "SELECT id FROM rows GROUP BY id HAVING count(*) > 1 ORDER BY min(number) LIMIT 1"
        found = self._db.execute(query).fetchone()
        if found is None:
            return None
        rows = self._db.execute("SELECT row FROM rows WHERE id = ? ORDER BY number LIMIT 2", found)
        first, second = (pickle.loads(row) for (row,) in rows)
        return found[0], first, second

    def without_split(self) -> tuple[int, str]:
        """Returns how many rows name no split, and the id of the first of them."""
        (count,) = self._db.execute("SELECT count(*) FROM rows WHERE split = ''").fetchone()
        first = self._db.execute("SELECT id FROM rows WHERE split = '' ORDER BY number LIMIT 1").fetchone()
        return count, first[0] if first else ""

    def split_by_hash(self, test_fraction: float) -> None:
        """Assigns ``test`` and ``train`` by `place_of` a row's id; each split gets at least one row."""
        least, most = self._db.execute("SELECT min(place_of(id)), max(place_of(id)) FROM rows").fetchone()
        # Where few clips would all be in one split, the last clip is moved to the other.
        self._db.execute(
            "UPDATE rows SET split = iif(place_of(id) < ? OR place_of(id) = ?, 'test', 'train')",
            (min(test_fraction, most), least),
        )

    def count_splits(self) -> Mapping[str, int]:
        """Number of rows of each split."""
        return dict(self._db.execute("SELECT split, count(*) FROM rows GROUP BY split ORDER BY split"))

    def __len__(self) -> int:
        return self._num_rows

    def __iter__(self) -> Iterator[SourceRow]:
        return map(_read, self._db.execute("SELECT id, split, row FROM rows ORDER BY number"))

    @overload
    def __getitem__(self, index: int) -> SourceRow: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[SourceRow]: ...

    def __getitem__(self, index: int | slice) -> SourceRow | Sequence[SourceRow]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        return _read(
            self._db.execute("SELECT id, split, row FROM rows WHERE number = ?", (number,)).fetchone()
        )


def place_of(name: str) -> float:
    """Maps a name to a number in [0, 1), the same on every machine: the first 64 bits of its SHA-256."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _key(row: SourceRow) -> bytes | None:
    """Returns the key shared by rows of the same stretch of the same recording without an id; None for a row with an
    id."""
    if row.id:
        return None
    stretch = repr((row.audio, row.start_sec, row.end_sec)).encode("utf-8", "backslashreplace")
    return hashlib.blake2b(stretch, digest_size=16).digest()


def _read(found: tuple[str, str, bytes]) -> SourceRow:
    row: SourceRow = pickle.loads(found[2])
    return dataclasses.replace(row, id=found[0], split=found[1])
