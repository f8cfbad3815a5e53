"""Data in a bucket (``gs://``, ``s3://``, any address fsspec reads): each file is downloaded or uploaded once.

Programs always read local files. One process of a machine downloads a whole file under a temporary name while the
others wait. Credentials and endpoints are those of the bucket's own library: ``AWS_ENDPOINT_URL``,
``GOOGLE_APPLICATION_CREDENTIALS``.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alm_jax.errors import UserError


def is_remote(path: str | Path) -> bool:
    """Whether a path is an address such as ``gs://bucket/folder`` rather than a local path."""
    return "://" in str(path)


def local_folder(url: str, local_dir: str | Path) -> Path:
    """Returns the local folder that mirrors what is below ``url``."""
    name = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:12]
    return Path(local_dir).expanduser().absolute() / f"{url.rstrip('/').rpartition('/')[2]}-{name}"


def exists(url: str) -> bool:
    """Whether the file exists."""
    with _reaching(url):
        fs, path = _open(url)
        return bool(fs.exists(path))


def newest(url: str, name: str) -> str | None:
    """Returns, of the folders below ``url`` that hold a file called ``name``, the one whose file is the latest."""
    with _reaching(url):
        fs, path = _open(url)
        found = fs.glob(f"{path.rstrip('/')}/*/{name}")
        latest = max(found, key=lambda own: str(_modified(fs, own)), default=None)
    return latest and f"{url.rstrip('/')}/{latest.split('/')[-2]}"


def fetch(url: str, target: Path) -> None:
    """Downloads a file of a bucket to ``target``, unless it is already there."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with _reaching(url), _lock(target):
        if not target.exists():
            fs, path = _open(url)
            partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
            fs.get_file(path, str(partial))
            partial.replace(target)


def mirror(url: str, local_dir: str | Path) -> Path:
    """Downloads everything below ``url``, or the file, into a local folder; unchanged local files are kept.

    Files get the modification time of the bucket's, so that a data set's state is the same on every machine.
    """
    top = local_folder(url, local_dir)
    with _reaching(url):
        fs, root = _open(url)
        found = fs.find(root, detail=True)
        if not found:
            raise FileNotFoundError("nothing has that name")
        for path, info in sorted(found.items()):
            inside = path[len(root.rstrip("/")) :].lstrip("/")
            if ".." in inside.split("/"):
                raise UserError(f"{url} holds {inside!r}, a path outside of it")
            target = top / (inside or path.rpartition("/")[2])
            modified = _modified(fs, path)
            seconds = modified.timestamp() if modified is not None else 0.0
            if target.is_file():
                known = target.stat()
                if (known.st_size, int(known.st_mtime)) == (info["size"], int(seconds)):
                    continue
                target.unlink()
            fetch(f"{url.rstrip('/')}/{inside}" if inside else url, target)
            os.utime(target, (seconds, seconds))
    return top if any(path != root for path in found) else top / root.rpartition("/")[2]


def upload(folder: Path, url: str, *, last: str) -> None:
    """Uploads a folder to a bucket, the file ``last`` after all others."""
    with _reaching(url):
        fs, root = _open(url)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        files.sort(key=lambda path: path == folder / last)
        for path in files:
            fs.put_file(str(path), f"{root.rstrip('/')}/{path.relative_to(folder).as_posix()}")


def _open(url: str) -> tuple[Any, str]:
    import fsspec

    fs, path = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    return fs, path


def _modified(fs: Any, path: str) -> Any:
    """Returns a file's modification time, where the file system states one."""
    try:
        return fs.modified(path)
    except NotImplementedError:
        return None


@contextlib.contextmanager
def _reaching(url: str) -> Iterator[None]:
    """Raises an error that names the address and what to check, where a bucket cannot be read or written."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"{url} needs a library that is not installed ({error}); pip install 'alm_jax[buckets]'"
        ) from error
    except UserError:
        raise
    except Exception as error:  # every library has its own
        raise UserError(
            f"{url} cannot be reached: {error or type(error).__name__}; check the address, the credentials, and "
            "that they allow reading (for building, also writing)"
        ) from error


@contextlib.contextmanager
def _lock(target: Path) -> Iterator[None]:
    with open(target.with_name(f".{target.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
