"""The folder of one run: who may write to it, and which config it belongs to."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from alm_jax.errors import UserError

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
EVALUATION = "evaluation.json"
TOKENIZER = "tokenizer.json"
METRICS = "metrics.jsonl"

RESUMABLE = (
    "eval_batch_size",
    "evaluations",
    "data/cache_dir",
    "data/local_dir",
    "data/num_reads",
    "training/log_every",
    "training/eval_every",
    "training/save_every",
    "training/keep_checkpoints",
    "training/max_skipped",
    "training/mesh",
    "training/parallelism",
    "training/tensorboard",
)
"""Config fields that may change when a run is continued: they do not change what is learned."""


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the folder for this process. Raises UserError where another run holds it.

    The lock is the kernel's, so a killed process leaves none behind.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise UserError(
                f"{workdir} is in use by another run ({file.read().strip() or 'unknown process'}): "
                "wait for it, stop it, or choose another --workdir"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def check_config(
    workdir: Path, config: dict[str, Any], *, read: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    """Raises UserError with a table where ``workdir`` was started with a config that this one may not continue.

    ``read`` brings a config that another version wrote to the fields of this one.
    """
    path = workdir / CONFIG
    if path.exists():
        check_resumable(read(json.loads(path.read_text())), config, where=str(workdir))


def check_resumable(old: dict[str, Any], new: dict[str, Any], *, where: str) -> None:
    """Raises UserError with a table unless a run of the config ``old`` may go on with ``new``."""
    before, after = flatten(old), flatten(new)
    changed = [
        key
        for key in sorted(set(before) | set(after))
        if before.get(key) != after.get(key) and not key.startswith(RESUMABLE)
    ]
    if changed:
        rows = "\n".join(
            f"  {key.replace('/', '.')}: {before.get(key)!r} -> {after.get(key)!r}" for key in changed
        )
        raise UserError(
            f"{where} holds a run with another config:\n{rows}\n"
            "Continue it with the config it was started with, or choose another --workdir."
        )


def write_config(workdir: Path, config: dict[str, Any]) -> None:
    """Writes the resolved config, whole or not at all."""
    temporary = workdir / f".{CONFIG}"
    temporary.write_text(json.dumps(config, indent=2) + "\n")
    temporary.replace(workdir / CONFIG)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict of ``a/b/c`` keys; lists are values."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}/{key}" if prefix else key)
    return flat
