"""Which rows of a split a filter keeps: their numbers, in a memory-mapped file.

The file is made once for a filter and a data set, below ``cache_dir``, by reading the columns of the index one batch
at a time; where nothing can be written there, it is made for this process only. Rows keep their order.
"""

import atexit
import dataclasses
import fnmatch
import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from data_pipelines.config import FilterConfig
from data_pipelines.index import Index

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """The rows that a filter keeps."""

    rows: Int[np.ndarray, " N"]
    """Numbers of the rows, ascending; mapped from a file."""
    licences: Mapping[str, int]
    """Number of rows by licence."""
    num_samples: int
    """Total length of the kept recordings, samples at the stored rate."""


def select(
    index: Index,
    kept: FilterConfig,
    *,
    sample_rate_hz: int,
    licences: Sequence[str],
    fingerprint: str,
    cache_dir: Path,
) -> Selection:
    """Selects the rows of ``index`` that ``kept`` keeps.

    Args:
      licences: names of the numbers in the column ``licence``.
      fingerprint: fingerprint of the split; with the filter it determines the file's name.
    """
    content = [fingerprint, dataclasses.asdict(kept)]
    folder, name = make_once(
        cache_dir, content, functools.partial(_write, index, kept, sample_rate_hz, licences)
    )
    about = json.loads((folder / f"{name}.json").read_text("utf-8"))
    return Selection(
        rows=map_numbers(folder / f"{name}.rows", about["num_rows"], len(index)),
        licences=about["licences"],
        num_samples=about["num_samples"],
    )


def make_once(cache_dir: Path, content: object, write: Callable[[Path, str], None]) -> tuple[Path, str]:
    """Returns a folder, and the start of the names of the files in it that ``content`` determines.

    Where they are missing, ``write(folder, name)`` makes them, ``NAME.json`` last.
    """
    name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_dir / "selections"
    if not (folder / f"{name}.json").is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write(folder, name)
        except OSError as error:
            logger.warning("the selection of rows cannot be stored in %s (%s)", folder, error.strerror)
            folder = Path(tempfile.mkdtemp(prefix="alm_jax_selection_"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            write(folder, name)
    return folder, name


def map_numbers(path: Path, count: int, below: int) -> Int[np.ndarray, " N"]:
    """Maps ``count`` numbers below ``below`` from a file of the dtype `number_type`."""
    return np.memmap(path, number_type(below), "r", shape=(count,)) if count else np.zeros(0, np.int64)


def number_type(below: int) -> type[np.unsignedinteger]:
    """Returns the dtype of row numbers in files."""
    return np.uint32 if below <= 1 << 32 else np.uint64


def captions_within(captions: Sequence[str], kept: FilterConfig) -> list[str]:
    """Returns those of a recording's captions that ``kept`` keeps."""
    most = np.inf if kept.max_caption_words is None else kept.max_caption_words
    return [text for text in captions if kept.min_caption_words <= 1 + text.count(" ") <= most]


def _write(
    index: Index, kept: FilterConfig, sample_rate_hz: int, licences: Sequence[str], folder: Path, name: str
) -> None:
    allowed = np.array([_is_allowed(licence, kept.licences) for licence in licences], np.bool_)
    counts, num_rows, num_samples = np.zeros(len(licences), np.int64), 0, 0
    partial = folder / f"{name}.{os.getpid()}.{threading.get_ident()}.partial"
    with open(partial, "wb") as file:
        start = 0
        for number in range(index.num_batches):
            batch = index.batch(number)
            good = _find(batch, kept, sample_rate_hz, allowed)
            places = np.flatnonzero(good)
            (places + start).astype(number_type(len(index))).tofile(file)
            num_rows += len(places)
            num_samples += int(batch.column("num_samples").to_numpy()[places].sum())
            counts += np.bincount(batch.column("licence").to_numpy()[places], minlength=len(licences))
            start += batch.num_rows
    partial.replace(folder / f"{name}.rows")
    about = {
        "num_rows": num_rows,
        "num_samples": num_samples,
        "licences": {licence: int(n) for licence, n in zip(licences, counts, strict=True) if n},
    }
    partial.write_text(json.dumps(about), "utf-8")
    partial.replace(folder / f"{name}.json")


def _is_allowed(licence: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(licence.lower(), p.lower()) for p in patterns)


def _find(
    batch: pa.RecordBatch, kept: FilterConfig, sample_rate_hz: int, allowed: Bool[np.ndarray, " L"]
) -> Bool[np.ndarray, " R"]:
    num_samples = batch.column("num_samples").to_numpy()
    good: Bool[np.ndarray, " R"] = num_samples >= kept.min_sec * sample_rate_hz
    if kept.max_sec is not None:
        good &= num_samples <= kept.max_sec * sample_rate_hz
    if not allowed.all():
        good &= allowed[batch.column("licence").to_numpy()]
    if kept.looks_at_captions:
        captions = batch.column("captions")
        words = 1 + pc.count_substring(captions.flatten(), " ").to_numpy()
        within = words >= kept.min_caption_words
        if kept.max_caption_words is not None:
            within &= words <= kept.max_caption_words
        offsets = captions.offsets.to_numpy()
        good &= np.add.reduceat(within, offsets[:-1] - offsets[0], dtype=np.int64) > 0
    return good
