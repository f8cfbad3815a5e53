"""The folder of one run: who may write to it, and which config it belongs to."""

import contextlib
import errno
import json
import logging
import math
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

from alm_jax.errors import DataError, UserError
from alm_jax.training.file_sums import SUMS, check_sums, write_sums
from alm_jax.training.metrics import METRICS_FILE, read_metrics

log = logging.getLogger(__name__)

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
EVALUATION = "evaluation.json"
TOKENIZER = "tokenizer.json"

RESUMABLE = (
    "eval_batch_size",
    "evaluations",
    "data/cache_dir",
    "data/local_dir",
    "data/num_reads",
    "training/log_every",
    "training/log_sec",
    "training/eval_every",
    "training/save_every",
    "training/keep_checkpoints",
    "training/keep_every",
    "training/keep_hours",
    "training/keep_best",
    "training/max_skipped",
    "training/mesh",
    "training/parallelism",
    "training/profile_steps",
    "training/tensorboard",
    "training/wandb",
)
"""Config fields that may change when a run is continued: they do not change what is learned."""
CHANGEABLE = (
    "training/num_steps",
    "training/max_skipped",
    "optimizer/peak_lr",
    "optimizer/warmup_steps",
    "optimizer/final_lr_fraction",
    "optimizer/weight_decay",
    "optimizer/clip_norm",
    "optimizer/b1",
    "optimizer/b2",
    "optimizer/eps",
    "optimizer/schedule",
    "optimizer/decay_exponent",
    "optimizer/clip_rms",
    "optimizer/is_relative",
    "optimizer/beta",
    "optimizer/rms",
)
"""Config fields that may change where it is asked for: what is learned changes, the arrays of the state do not."""
MOVABLE = re.compile(r"data/dataset/(parts/\d+/dataset/)?(path|root)|data/tokenizer/path")
"""Where data lie: they may have moved, since the fingerprint of the data set says whether they are the same."""
LOCK, HOLDER = ".lock", ".holder"
URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:/")
NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""What file systems answer that have no locks of the kernel."""


def local_folder(text: str) -> Path:
    """A run's folder as a path. Raises UserError for a bucket, which would otherwise become a folder ``gs:`` here."""
    if URL.match(text):
        raise UserError(
            f"{text} is an address, and a run's folder must be a path: mount the bucket (gcsfuse, mountpoint-s3) and "
            "name the folder in the mount"
        )
    return Path(text)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the folder for this process; makes it where it is not there.

    The lock is the kernel's, so a killed process leaves none behind; a file system without such locks gets a lock file,
    which a killed process does leave (filelock). Raises UserError where another run holds it or it cannot be written.
    """
    lock: filelock.BaseFileLock = filelock.FileLock(workdir / LOCK)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            lock = filelock.SoftFileLock(workdir / f"{LOCK}-file")
            lock.acquire(timeout=0)
    except filelock.Timeout as error:
        with contextlib.suppress(OSError):
            holder = (workdir / HOLDER).read_text().strip()
            raise UserError(_in_use(workdir, holder)) from error
        raise UserError(_in_use(workdir, "unknown process")) from error
    except OSError as error:
        raise UserError(
            f"{workdir} cannot be a run's folder: {error.strerror or error}; name another --workdir"
        ) from error
    try:
        # Nothing but a message depends on it, so a full disk must not stop a run that could go on.
        with contextlib.suppress(OSError):
            (workdir / HOLDER).write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        lock.release()


def _in_use(workdir: Path, holder: str) -> str:
    return f"{workdir} is in use by another run ({holder}): wait for it, stop it, or choose another --workdir"


def check_config(
    workdir: Path,
    config: dict[str, Any],
    *,
    read: Callable[[dict[str, Any]], dict[str, Any]],
    is_change_allowed: bool = False,
) -> None:
    """Raises UserError with a table where ``workdir`` was started with a config that this one may not continue.

    ``read`` brings a config that another version wrote to the fields of this one. A damaged file is passed over with a
    warning: each checkpoint has a copy, which is checked too, and the file is written anew.
    """
    path = workdir / CONFIG
    try:
        old = read(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return
    except (ValueError, TypeError, AttributeError, UserError) as error:
        log.warning(
            "%s is damaged (%s) and is written anew; the checkpoints have their own copies", path, error
        )
        return
    check_resumable(old, config, where=str(workdir), is_change_allowed=is_change_allowed)


def is_evaluation_missing(workdir: Path, step: int, training: Any) -> bool:
    """Whether metrics.jsonl lacks the evaluation that was due at ``step``, where a run is taken up again."""
    is_due = step == training.num_steps or (training.eval_every and step % training.eval_every == 0)
    path = workdir / METRICS_FILE
    if not step or not is_due or not path.exists():
        return False
    return not any(record["step"] == step and "grad_norm" not in record for record in read_metrics(path))


BEST_BY = "validation/loss"
"""The figure of metrics.jsonl by which a checkpoint is the best: the lower, the better."""


def validation_losses(workdir: Path) -> dict[int, float]:
    """Step -> ``BEST_BY`` of each evaluation that metrics.jsonl has."""
    path = workdir / METRICS_FILE
    records = read_metrics(path) if path.is_file() else []
    found = {record["step"]: record[BEST_BY] for record in records if BEST_BY in record}
    return {step: loss for step, loss in found.items() if not math.isnan(loss)}


def check_untrained(workdir: Path, save_every: int) -> None:
    """Raises DataError where a run is about to begin in a folder that has trained and whose checkpoints are gone."""
    damaged = sorted(path.name for path in (workdir / CHECKPOINTS).glob("damaged-*"))
    path = workdir / METRICS_FILE
    steps = [record["step"] for record in read_metrics(path)] if path.exists() else []
    if damaged or (save_every and max(steps, default=0) > save_every):
        found = f"{METRICS_FILE} goes to step {max(steps, default=0)}" + (
            f", and there are {damaged}" if damaged else ""
        )
        raise DataError(
            f"{workdir} has trained ({found}) but has no checkpoint to continue from. Nothing was changed: bring one "
            f"back from a copy; or, to begin anew, name another --workdir or move {METRICS_FILE} and {CHECKPOINTS} away"
        )


def check_resumable(
    old: dict[str, Any], new: dict[str, Any], *, where: str, is_change_allowed: bool = False
) -> list[str]:
    """What a run of the config ``old`` that goes on with ``new`` learns differently, one line a field.

    Raises UserError with a table where that may not be: any of it, or with ``is_change_allowed`` what is not in
    CHANGEABLE.
    """
    before, after = flatten(old), flatten(new)
    changed = [
        key
        for key in sorted(set(before) | set(after))
        if before.get(key) != after.get(key) and not key.startswith(RESUMABLE) and not MOVABLE.fullmatch(key)
    ]
    refused = [key for key in changed if not (is_change_allowed and key.startswith(CHANGEABLE))]

    def describe(keys: list[str]) -> list[str]:
        return [f"{key.replace('/', '.')}: {before.get(key)!r} -> {after.get(key)!r}" for key in keys]

    if refused:
        rows = "\n".join(f"  {line}" for line in describe(refused))
        changeable = all(key.startswith(CHANGEABLE) for key in refused)
        advice = "continue with the change by --change" if changeable else "continue it with its own config"
        raise UserError(
            f"{where} holds a run with another config:\n{rows}\n"
            f"{advice[0].upper()}{advice[1:]}, or choose another --workdir."
        )
    return describe(changed)


def write_record(workdir: Path, config: dict[str, Any], tokenizer: str) -> None:
    """Writes the resolved config, the tokenizer and their sums, each whole or not at all; what is there already stays.

    A run that goes on so needs no room on the disk before its first record.
    """
    for name, text in ((CONFIG, json.dumps(config, indent=2) + "\n"), (TOKENIZER, tokenizer)):
        path = workdir / name
        if path.is_file() and path.read_bytes() == text.encode():
            continue
        temporary = workdir / f".{name}"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    if check_sums(workdir, is_complete=False) or not (workdir / SUMS).is_file():
        write_sums(workdir, (CONFIG, TOKENIZER))


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict of ``a/b/c`` keys; lists of dicts have numbers for keys, other lists are values."""
    if isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        tree = {str(index): item for index, item in enumerate(tree)}
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}/{key}" if prefix else key)
    return flat
