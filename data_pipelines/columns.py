"""Columns of a table: named in a config, or found by their usual names; and the reading of their cells."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from alm_jax.errors import DataError
from data_pipelines.captions import normalise_caption
from data_pipelines.tables import Row

NO_COLUMN = "-"
"""Column name that means: no such column, whatever the table has."""
_NUMBERED = re.compile(r"captions?[ _]?(\d{1,4})", re.IGNORECASE)
_USUAL = {
    "audio": (
        "audio",
        "file",
        "file_name",
        "filename",
        "path",
        "audio_path",
        "audio_file",
        "filepath",
        "wav",
    ),
    "captions": ("caption", "captions", "text", "sentence", "description"),
    "labels": ("labels", "label", "category", "class", "tags", "tag"),
    "split": ("split", "subset"),
    "licence": ("licence", "license"),
    "start_sec": ("start_sec", "start", "start_time", "start_seconds"),
    "end_sec": ("end_sec", "end", "end_time", "end_seconds"),
    "id": ("id", "uid", "key"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """Names of a table's columns. The default '' takes the first usual name that the table has; ``-`` takes none."""

    audio: str = ""
    """Column of the recording: a path below the root, or bytes. Usual names: audio, file, file_name, filename,
    path."""
    captions: tuple[str, ...] = ()
    """Column or columns of captions, each a text or a list of texts. Usual names: caption, text, sentence, and
    caption_1, caption_2 and so on."""
    labels: str = ""
    """Column of the classes, a text or a list of texts. Usual names: labels, label, category, class, tags."""
    split: str = ""
    """Column of the split. Usual names: split, subset."""
    licence: str = ""
    """Column of the licence. Usual names: licence, license."""
    start_sec: str = ""
    """Column of the clip's start in the recording, seconds. Usual names: start_sec, start, start_time."""
    end_sec: str = ""
    """Column of the clip's end in the recording, seconds. Usual names: end_sec, end, end_time."""
    id: str = ""
    """Column of the clip's unique name. Usual names: id, uid, key."""


def find_columns(config: ColumnsConfig, row: Row, known: Sequence[str]) -> ColumnsConfig:
    """Finds the columns of a table whose columns are ``known``; '' means none.

    Raises DataError where a named column does not exist, or where no column holds the recording; ``row`` gives the
    place for the message.
    """
    found: dict[str, Any] = {}
    by_name = {name.lower(): name for name in reversed(known)}
    for field, usual in _USUAL.items():
        named = getattr(config, field)
        if named and named not in (NO_COLUMN, (NO_COLUMN,)):
            for name in (named,) if isinstance(named, str) else named:
                if name not in known:
                    raise DataError(
                        f"{row.path}: there is no column {name!r}, which columns.{field} names; it has {_list(known)}"
                    )
            found[field] = named
        elif named:
            found[field] = () if field == "captions" else ""
        elif field == "captions":
            numbered = sorted((int(m[1]), name) for name in known if (m := _NUMBERED.fullmatch(name)))
            single = [by_name[name] for name in usual if name in by_name][:1]
            found[field] = tuple(single + [name for _, name in numbered])
        else:
            found[field] = next((by_name[name] for name in usual if name in by_name), "")
    if not found["audio"]:
        raise DataError(
            f"{row.path}: no column for the recordings; it has {_list(known)}. "
            "Name it: --data.dataset.columns.audio NAME"
        )
    return ColumnsConfig(**found)


def describe_columns(columns: ColumnsConfig) -> tuple[str, ...]:
    """Describes what was found: a line for each field that has a column, and one for the others."""
    lines, missing = [], []
    for field in _USUAL:
        value = getattr(columns, field)
        names = ([value] if value else []) if isinstance(value, str) else list(value)
        if names:
            lines.append(f"{field}: {'column' if len(names) == 1 else 'columns'} {', '.join(names)}")
        else:
            missing.append(field)
    return (*lines, *([f"no column for: {', '.join(missing)}"] if missing else []))


def read_texts(row: Row, column: str, separator: str = "") -> list[str]:
    """Returns the texts of a cell that has one text or a list; none where it is empty."""
    value = row.cells.get(column)
    values = value if isinstance(value, list | tuple) else [value]
    texts = []
    for item in values:
        if item is None or (isinstance(item, float) and math.isnan(item)):
            continue
        if not isinstance(item, str | int | float):
            raise row.fail(column, "a text, or a list of texts")
        texts += [_as_text(part) for part in (str(item).split(separator) if separator else [item])]
    return texts


def read_text(row: Row, column: str) -> str:
    """Returns the cleaned text of a cell; '' where it is empty or there is no such column."""
    if not column:
        return ""
    texts = read_texts(row, column)
    if len(texts) > 1:
        raise row.fail(column, "one text")
    return normalise_caption(texts[0]) if texts else ""


def read_seconds(row: Row, column: str) -> float | None:
    """Returns the number of a cell; None where it is empty or there is no such column."""
    value = row.cells.get(column) if column else None
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < math.inf or isinstance(value, bool):
        raise row.fail(column, "seconds from the beginning of the recording, zero or more")
    return seconds


def _as_text(value: str | int | float) -> str:
    # JSON can hold half of a surrogate pair, which no file name can.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else repr(value)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:30]) + (", ..." if len(names) > 30 else "") or "no columns"
