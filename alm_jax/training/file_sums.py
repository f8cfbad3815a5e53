"""SHA-256 of files in a folder, in a file that ``sha256sum --check`` reads, to find a change of any bit."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

SUMS = "SHA256SUMS"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path, names: Iterable[str] | None = None) -> None:
    """Writes the sums of some files of ``folder``, or of all below it; the file is whole or the old one."""
    found = _all_names(folder) if names is None else sorted(names)
    lines = [f"{_digest(folder / name)}  {name}\n" for name in found]
    temporary = folder / f".{SUMS}.{os.getpid()}"
    temporary.write_text("".join(lines), encoding="utf-8")
    temporary.replace(folder / SUMS)


def check_sums(folder: Path, *, is_complete: bool) -> list[str]:
    """What differs from the sums, in words; empty where nothing does or there are no sums.

    ``is_complete``: whether every file below the folder has one.
    """
    path = folder / SUMS
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    sums: dict[str, str] = {}
    for line in lines[:-1]:
        digest, _, name = line.decode("utf-8", "replace").partition("  ")
        sums[name] = digest
    problems = [] if lines[-1] == b"" else [f"{path} is cut"]
    for name, digest in sums.items():
        if not (folder / name).is_file():
            problems.append(f"{folder / name} is missing")
        elif _digest(folder / name) != digest:
            problems.append(f"{folder / name} differs from what was written")
    if is_complete:
        problems += [
            f"{folder / name} has no sum in {path}" for name in _all_names(folder) if name not in sums
        ]
    return problems


def _all_names(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and SUMS not in path.name)
    return sorted(path.relative_to(folder).as_posix() for path in files)
