"""A folder that is written completely beside its place and then moved there, so that two exports are never mixed."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from alm_jax.errors import UserError

_OWN = ("*.json", "*.safetensors", "*.stablehlo", "*.txt", "*.model", "README.md", "LICENSE*")
_MARKS = ("config.json", "signature.json", "model.safetensors", "model.safetensors.index.json")


@contextlib.contextmanager
def written_whole(folder: str | Path) -> Iterator[Path]:
    """Context that gives a new folder to write into, which replaces ``folder`` when the block ends without an error.

    Nothing of an older export stays: neither its index nor its weights. Files get the mode 0644, and folders 0755.

    Raises:
        UserError: ``folder`` exists and is neither empty nor an older export.
    """
    folder = Path(folder)
    _check_place(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
        written, older = Path(beside) / "new", Path(beside) / "older"
        written.mkdir()
        yield written
        for path in (written, *written.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        _check_place(folder)
        if folder.exists():
            os.rename(folder, older)
        os.rename(written, folder)


def _check_place(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} is no folder of its own; name another one to write")
    found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    own = {
        path.name
        for pattern in _OWN
        for path in folder.glob(pattern)
        if path.is_file() and not path.is_symlink()
    }
    foreign = sorted(set(found) - own)
    if found and (foreign or not own.intersection(_MARKS)):
        raise UserError(
            f"{folder} is there already, and is neither empty nor an older export"
            + (f": it holds {', '.join(foreign[:5])}" if foreign else "")
            + "; name another folder, or remove it"
        )
