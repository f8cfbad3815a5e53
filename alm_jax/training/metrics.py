"""Metrics of a run: ``metrics.jsonl``, always written, and trackers on request.

The file holds one flat JSON object a line, ``step`` first. Floats are written so that reading them back gives the
same bits (float32 values as the doubles they are). JSON cannot represent values that are not finite, so they are the
strings "NaN", "Infinity" and "-Infinity" (as in protobuf's JSON mapping): the file stays valid for every reader, and
``float()`` of the string gives the value back.
"""

import io
import json
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alm_jax.errors import UserError
from alm_jax.training.trackers import Tracker

METRICS_FILE = "metrics.jsonl"
log = logging.getLogger(__name__)

NOT_FINITE = ("NaN", "Infinity", "-Infinity")


def to_scalar(value: Any) -> float | int | bool | str:
    """Converts a Python, NumPy or JAX scalar, or a string, to a plain Python scalar.

    Raises ValueError for anything with dimensions or structure.
    """
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.ndim != 0 or array.dtype.kind in "OSMmc":
        raise ValueError(f"a metric is one number or string; got shape {array.shape} of {array.dtype}")
    if array.dtype.kind == "b":
        return bool(array)
    # bfloat16 and the other small floats of JAX have kind "V" or "f": all convert to float exactly.
    return int(array) if array.dtype.kind in "iu" else float(array)


def to_json_line(step: int, metrics: Mapping[str, Any]) -> str:
    """Formats one line of the file, without its newline.

    Raises ValueError where ``metrics`` is not flat, or contains ``step``.
    """
    if "step" in metrics:
        raise ValueError("metrics must not contain 'step': it is the line's own key")
    record: dict[str, Any] = {"step": int(step)}
    for name, value in metrics.items():
        scalar = to_scalar(value)
        if isinstance(scalar, float) and not math.isfinite(scalar):
            scalar = "NaN" if math.isnan(scalar) else "Infinity" if scalar > 0 else "-Infinity"
        record[name] = scalar
    return json.dumps(record, allow_nan=False, ensure_ascii=False)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Yields the records of a ``metrics.jsonl``, in order; values that are not finite are floats again.

    An incomplete last line, which a killed run leaves, is skipped. Any other line that is no record raises UserError
    with its number.
    """
    return [record for _, record in _complete_lines(Path(path))]


def _complete_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields each complete line with its record."""
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError("no object with an integer 'step'")
        except ValueError as error:
            raise UserError(
                f"{path}:{number} is not a metrics record ({error}); expected one JSON object a line with "
                "'step'. Remove the line, or move the file away"
            ) from error
        values = {k: float(v) if isinstance(v, str) and v in NOT_FINITE else v for k, v in record.items()}
        yield line, values


class MetricsWriter:
    """Appends records to ``metrics.jsonl`` of a folder, and passes them to trackers.

    A line reaches the operating system whole before ``write`` returns, so a killed process loses nothing
    that it has written. Use it as a context manager, on one process of a run.

    Args:
      folder: the run's folder; created if it does not exist.
      trackers: other views that get every record. A failure of one warns once and ends only that one.
    """

    def __init__(self, folder: str | os.PathLike[str], *, trackers: Iterable[Tracker] = ()) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / METRICS_FILE
        self._trackers = list(trackers)
        _drop_torn_line(self.path)
        self._file = io.FileIO(self.path, "ab")
        self._waiting: deque[bytes] = deque()
        self._is_refused = False

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one record: numbers (Python, NumPy or JAX scalars) and strings.

        Where the disk refuses, a warning says so once, and the record waits in memory for the next attempt: no record
        ends a run. Raises ValueError where ``metrics`` is not flat.
        """
        self._waiting.append((to_json_line(step, metrics) + "\n").encode())
        self._flush()
        scalars = {name: to_scalar(value) for name, value in metrics.items()}
        self._tell(lambda tracker: tracker.write(int(step), scalars))

    def _flush(self) -> None:
        """Writes the records that wait, each whole or not at all."""
        while self._waiting:
            line = self._waiting[0]
            try:
                size = os.fstat(self._file.fileno()).st_size
                try:
                    written = 0
                    while written < len(line):  # a disk that fills takes a part, and says why at the next
                        written += self._file.write(line[written:])
                except OSError:
                    self._file.truncate(size)
                    raise
            except OSError as error:
                if not self._is_refused:
                    log.warning(
                        "%s cannot be written: %s; training goes on, and records wait in memory until it can",
                        self.path,
                        error.strerror or error,
                    )
                self._is_refused = True
                return
            self._waiting.popleft()
        if self._is_refused:
            self._is_refused = False
            log.warning("%s can be written again, and lacks no record", self.path)

    def truncate_after(self, step: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Drops the records of later steps than ``step``; call it when a run resumes after that step.

        Returns the records that are kept and those that are dropped.

        Repeated steps then occur in the file once. Records are in the order of their steps, so the end is cut off,
        which needs no room on the disk.
        """
        self._waiting.clear()
        found = list(_complete_lines(self.path))
        kept = [(line, record) for line, record in found if record["step"] <= step]
        if len(kept) < len(found):
            self._file.truncate(sum(len(line) for line, _ in kept))
        self._tell(lambda tracker: tracker.restart(step + 1))
        return [record for _, record in kept], [record for _, record in found[len(kept) :]]

    def close(self) -> None:
        """Closes the files; a second call does nothing."""
        if not self._file.closed:
            self._flush()
            if self._waiting:
                log.warning("%s lacks the last %d records", self.path, len(self._waiting))
            self._file.close()
        self._tell(lambda tracker: tracker.close())
        self._trackers.clear()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _tell(self, action: Callable[[Tracker], None]) -> None:
        """Calls every tracker, whose failures must never end the run."""
        for tracker in list(self._trackers):
            try:
                action(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                log.warning(
                    "%s failed (%s) and gets no more records; %s is complete", tracker.name, error, self.path
                )


def _drop_torn_line(path: Path) -> None:
    """Removes what follows the last newline, so that the next record starts on its own line."""
    if path.exists():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
