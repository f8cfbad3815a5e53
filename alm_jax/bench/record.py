"""Rows of a benchmark on disk, with the circumstances of the measurement: ``NAME.json`` and ``NAME.run.json``."""

import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from alm_jax.errors import DataError

PACKAGES = (
    "jax",
    "jaxlib",
    "libtpu",
    "jax-cuda13-plugin",
    "flax",
    "torch",
    "transformers",
    "open_clip_torch",
    "tensorflow-cpu",
    "array_record",
    "tokenizers",
    "grain",
)
"""Packages that affect the figures, where they are installed."""
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """Rows, and the circumstances of their measurement."""

    rows: Sequence[Row]
    """Rows as the command printed them."""
    command: str
    """The command line."""
    machine: dict[str, Any]
    """Processor, cores, devices, and load of the machine."""
    versions: dict[str, str]
    """Versions of packages and Python."""


def run_path(path: Path) -> Path:
    """Returns the path of the circumstances of ``path``'s rows."""
    return path.with_suffix(".run.json")


def describe_machine() -> dict[str, Any]:
    """Describes this machine, without its name."""
    devices = jax.devices()
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "load_average": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def describe_versions() -> dict[str, str]:
    """Returns the versions of the packages that affect the figures."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class Recorder:
    """Writes rows as they are measured, so that an interruption loses none."""

    def __init__(self, path: Path | None, command: str):
        """``path`` None writes nothing."""
        self.rows: list[Row] = []
        self._path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            circumstances = {
                "command": command,
                "machine": describe_machine(),
                "versions": describe_versions(),
            }
            run_path(path).write_text(json.dumps(circumstances, indent=2) + "\n")

    def add(self, row: Row) -> None:
        """Writes one row."""
        self.rows.append(row)
        if self._path is not None:
            self._path.write_text(json.dumps(self.rows, indent=2) + "\n")


def read_record(path: Path) -> Record:
    """Reads what ``Recorder`` wrote. Raises DataError where it is incomplete."""
    try:
        circumstances = json.loads(run_path(path).read_text())
        return Record(rows=json.loads(path.read_text()), **circumstances)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path} is no record of a benchmark ({error}): write it, and {run_path(path).name} beside it, with "
            "`alm bench ... --json`"
        ) from error
