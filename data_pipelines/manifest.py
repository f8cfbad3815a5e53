"""The manifest of a prepared data set: what was expected, what was found, and what is needed to open it.

``manifest.json`` is written last, so a folder that has one is complete. Beside it are ``index/SPLIT.arrow``, the
shards of the records, the files that TFDS needs to read them, and ``rejects.jsonl``. No path in it leads outside the
folder, which may be moved, copied or mounted read-only.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alm_jax.errors import DataError
from data_pipelines.records import Encoding

FORMAT = 2
"""Version of the layout on disk; a folder of another version is not opened, and the data set is built again."""
MANIFEST_FILE = "manifest.json"
REJECTS_FILE = "rejects.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitManifest:
    """Contents of one split."""

    num_planned: int
    """Number of rows of the source."""
    num_rows: int
    """Number of recordings that were kept."""
    num_missing: int
    """Number of recordings that did not exist."""
    num_undecodable: int
    """Number of recordings, or captions, that existed and could not be used."""
    seconds: float
    shortest_sec: float
    longest_sec: float
    num_captions: int
    num_negatives: int
    num_labels: int
    licences: Mapping[str, int]
    """Number of recordings by licence; the index holds the number of a licence in this order."""
    ids_sha256: str
    """SHA-256 of the ids that were kept, in order, one a line: equal where two builds have the same recordings."""
    fingerprint: str
    """SHA-256 of the rows in order: ids, lengths, labels, captions, negatives, hashes of the source files."""
    index_bytes: int
    """Size of the split's index file, bytes."""
    shards: tuple[str, ...]
    """Files of the records, in order."""
    shard_lengths: tuple[int, ...]
    """Number of records of each file."""
    shard_bytes: tuple[int, ...]
    """Size of each file, bytes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of a prepared data set."""

    name: str
    """Name of the data set: ``esc50``."""
    sample_rate_hz: int
    """Sampling rate of its stored recordings, Hz."""
    encoding: Encoding
    class_names: tuple[str, ...]
    """Class names, which labels index."""
    signature: str
    """State of the sources that it was built from."""
    notes: Mapping[str, int]
    """Number of changes made while building, by kind."""
    splits: Mapping[str, SplitManifest]
    format: int = FORMAT

    @property
    def num_planned(self) -> int:
        """Number of recordings of the source, over all splits."""
        return sum(split.num_planned for split in self.splits.values())

    @property
    def num_rejected(self) -> int:
        """Number of recordings that were left out."""
        return self.num_planned - sum(split.num_rows for split in self.splits.values())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that a reader of the data set can see."""
        content = [self.sample_rate_hz, self.encoding, list(self.class_names)]
        rows = [[name, split.num_rows, split.fingerprint] for name, split in self.splits.items()]
        return hashlib.sha256(json.dumps([content, rows]).encode()).hexdigest()

    def to_json(self) -> str:
        """The content of the file, JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a completely built data set in the current layout."""
    return (folder / MANIFEST_FILE).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a folder. Raises DataError with the remedy where it or an index is damaged."""
    path = folder / MANIFEST_FILE
    remedy = f"delete the folder {folder}, and the data set is built again"
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if found["format"] != FORMAT:
            raise DataError(f"{path} has format {found['format']}, this version reads {FORMAT}; {remedy}")
        splits = {}
        for name, values in found.pop("splits").items():
            for field in ("shards", "shard_lengths", "shard_bytes"):
                values[field] = tuple(values[field])
            splits[name] = SplitManifest(**values)
        manifest = Manifest(**{**found, "class_names": tuple(found["class_names"]), "splits": splits})
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; {remedy}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {error}; {remedy}") from error
    for name, split in splits.items():
        index = index_path(folder, name)
        size = index.stat().st_size if index.is_file() else None
        if size != split.index_bytes:
            found_bytes = "is missing" if size is None else f"has {size} bytes"
            raise DataError(f"{index} {found_bytes}, expected {split.index_bytes}; {remedy}")
    return manifest


def index_path(folder: Path, split: str) -> Path:
    """Opens the index of a split."""
    return folder / "index" / f"{split}.arrow"
