"""Paths named in a table, kept inside the folder that they are relative to, links included."""

import functools
import os
from pathlib import Path

from data_pipelines.tables import Row


def resolve_inside(root: Path, name: str, row: Row, column: str) -> Path:
    """Returns ``root / name``, a path below ``root``; nothing is opened, and the file need not exist.

    A link is followed where it leads to a place inside ``root``, or, where ``root`` is a snapshot in the cache of the
    Hugging Face Hub, into the ``blobs`` of that cache, where all its files lie. Raises DataError, with file, line and
    column, for a path that leaves ``root`` by ``..`` or by another link, or that no file can have.
    """
    if "\\" in name or "\0" in name or not name.strip() or not _can_be_encoded(name):
        raise row.fail(column, f"a path inside {root}")
    path = root / name
    if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(root)):
        raise row.fail(column, f"a path inside {root}")
    # realpath, since Path.resolve raises for a link to itself: that file is rejected when it is read.
    target = Path(os.path.realpath(path))
    if any(target.is_relative_to(allowed) for allowed in _allowed(root)):
        return path
    raise row.fail(
        column,
        f"a path inside {root}; it is a link to {target}, and links are followed inside that folder only, or into the "
        "blobs of the Hub cache that it is a snapshot of. Copy the recordings, or name their folder as the root",
    )


@functools.lru_cache(maxsize=16)
def _allowed(root: Path) -> list[Path]:
    """Returns where a link may lead: into ``root`` and, where that is in a snapshot of a Hub cache, into its
    blobs."""
    places = [Path(os.path.realpath(root))]
    absolute = Path(os.path.abspath(root))
    for folder in (absolute, *absolute.parents):
        if folder.parent.name == "snapshots":
            return [*places, Path(os.path.realpath(folder.parent.parent / "blobs"))]
    return places


def _can_be_encoded(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True
