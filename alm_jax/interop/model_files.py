"""Access to the files of a model's folder: only regular files inside it, wherever their names come from.

A folder of another project may hold links to anything, pipes that never end, and names that lead out of it. Only one
kind of link is followed: from a snapshot in the Hub's cache to the blobs beside it.
"""

import fnmatch
import stat
from pathlib import Path

from alm_jax.errors import UserError
from alm_jax.interop.fields import Fields, read_object

PREPROCESSOR = "preprocessor_config"
"""Key in the fields given to `Format.read_config` for the object of preprocessor_config.json, where a folder has
one."""
CONFIG = "config.json"


def find_file(folder: Path, name: str) -> Path | None:
    """Returns the file of that name; None where it does not exist.

    Args: name: may lead into a folder inside of ``folder`` ("1_Pooling/config.json").

    Raises: UserError: it is not a file, is a link out of the folder or to nothing, or cannot be read.
    """
    path = folder / name
    try:
        kind = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # a name too long, or with a zero byte
        raise UserError(f"{folder} has no file {name!r:.80} ({error})") from error
    target = path.resolve()
    if not target.exists():
        raise UserError(f"{path}: a link to {path.readlink()}, which is not there; copy the file itself")
    if not _is_inside(folder, target):
        raise UserError(
            f"{path}: leads to {target}, outside of the model's folder; copy the file itself into the folder"
        )
    if stat.S_ISLNK(kind):
        kind = target.stat().st_mode
    if not stat.S_ISREG(kind):
        raise UserError(f"{path}: no regular file; expected one, or nothing of that name")
    return path


def find_files(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    """Returns the files of a folder that match any of ``patterns``, by name. Raises UserError as `find_file` does."""
    # Not by `glob`, which does not see a link to nothing under a name without a wildcard.
    present = sorted(path.name for path in folder.iterdir())
    names = [name for name in present if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    found = {name: find_file(folder, name) for name in names}
    return {name: path for name, path in found.items() if path is not None}


def need_file(folder: Path, name: str, what: str) -> Path:
    """Returns the file of that name. Raises UserError where it does not exist, saying that it was ``what``."""
    path = find_file(folder, name)
    if path is None:
        raise UserError(f"{folder / name}: no such file; expected {what}")
    return path


def _is_inside(folder: Path, target: Path) -> bool:
    root = folder.resolve()
    if target.is_relative_to(root):
        return True
    # models--OWNER--NAME/snapshots/COMMIT/config.json -> models--OWNER--NAME/blobs/HASH
    snapshots = [parent for parent in (root, *root.parents) if parent.parent.name == "snapshots"]
    return any(target.is_relative_to(parent.parents[1] / "blobs") for parent in snapshots)


def read_fields(folder: Path) -> Fields:
    """Reads config.json, with the object of preprocessor_config.json as `PREPROCESSOR` in it where that exists.

    Raises UserError where config.json is missing, or one of them is no JSON object.
    """
    fields = read_object(need_file(folder, CONFIG, "the folder of a model"))
    # What processors of transformers write since version 5 comes first.
    if (processor := find_file(folder, "processor_config.json")) is not None:
        return fields | {PREPROCESSOR: read_object(processor).section("feature_extractor")}
    if (preprocessor := find_file(folder, "preprocessor_config.json")) is not None:
        return fields | {PREPROCESSOR: read_object(preprocessor)}
    return fields
