"""What a run folder says of how it came about: ``run.log`` has each start and every warning."""

import contextlib
import datetime
import json
import logging
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

LOG = "run.log"
PACKAGES = ("alm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow")


@contextlib.contextmanager
def recorded(workdir: Path, devices: str) -> Iterator[None]:
    """Appends this start of a run to its ``run.log``, then its warnings, then how it ended.

    Nothing of it can stop a run: where the file cannot be written, it lacks lines.
    """
    start = {
        "command": shlex.join(sys.orig_argv),
        "folder": os.getcwd(),
        "commit": current_commit(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "python": sys.version.split()[0],
        "host": socket.gethostname(),
        "process": os.getpid(),
        "devices": devices,
    }
    handler = _QuietFile(workdir / LOG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    packages = [logging.getLogger(name) for name in ("alm_jax", "data_pipelines")]
    for package in packages:
        package.addHandler(handler)
    handler.say(f"start {json.dumps(start)}")
    try:
        yield
    except BaseException as error:
        handler.say(f"end {type(error).__name__}: {error}")
        raise
    else:
        handler.say("end")
    finally:
        for package in packages:
            package.removeHandler(handler)
        handler.close()


class _QuietFile(logging.FileHandler):
    """A log file that nobody misses where the disk refuses it."""

    def __init__(self, path: Path):
        super().__init__(path, encoding="utf-8", delay=True)

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Says nothing."""

    def say(self, text: str) -> None:
        """Appends one line with the time."""
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        with contextlib.suppress(OSError), open(self.baseFilename, "a", encoding="utf-8") as file:
            file.write(f"{now} {text}\n")


def current_commit() -> str | None:
    """The commit of the code that runs, None where it is not a checkout; ``-dirty`` where it was changed."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
