"""What people do with the checkpoints of a run: list, verify, compare, copy and prune them."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np

from alm_jax.errors import AlmError, DataError, UserError
from alm_jax.interop.written_whole import written_whole
from alm_jax.run import workdir as run_folder
from alm_jax.run.load import find_step, open_run, split_step
from alm_jax.training.checkpoint import Checkpoints
from alm_jax.training.file_sums import SUMS, check_sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One checkpoint of a run."""

    step: int
    size_bytes: int
    written: float
    """Seconds since 1970."""
    version: str
    """Version of alm_jax that wrote it."""
    loss: float | None
    """``validation/loss`` after this step; None where there is none."""


def list_checkpoints(run: Path) -> list[Entry]:
    """The checkpoints of a run, oldest first. Raises as `open_run` does, DataError where a manifest is damaged."""
    checkpoints = open_run(run)
    losses = run_folder.validation_losses(run)
    entries = []
    for step in checkpoints.steps():
        folder = checkpoints.folder / str(step)
        files = [file for file in folder.rglob("*") if file.is_file()]
        entries.append(
            Entry(
                step=step,
                size_bytes=sum(file.stat().st_size for file in files),
                written=folder.stat().st_mtime,
                version=checkpoints.manifest(step).get("versions", {}).get("alm_jax", "unknown"),
                loss=losses.get(step),
            )
        )
    return entries


def verify(run: Path, steps: list[int] | None = None) -> list[str]:
    """What is wrong with a run's checkpoints, and with its config and tokenizer, in words; empty where all is whole.

    Every array is read and compared with its checksum, and every file with its sum. Raises as `open_run` does.
    """
    checkpoints = open_run(run)
    problems = check_sums(run, is_complete=False)
    config = run / run_folder.CONFIG
    try:
        json.loads(config.read_bytes())
    except (OSError, ValueError) as error:
        problems.append(f"{config} cannot be read: {error}")
    for step in checkpoints.steps() if steps is None else steps:
        problems += check_sums(checkpoints.folder / str(step), is_complete=True)
        try:
            checkpoints.read_everything(step)
        except AlmError as error:
            problems.append(str(error))
    return problems


def difference(first: str, second: str) -> tuple[list[str], list[str]]:
    """How two checkpoints, each ``RUN@STEP``, differ: lines for their configs and for their arrays, largest first."""
    sides = []
    for source in (first, second):
        checkpoints, step = _open(source)
        arrays = checkpoints.read_everything(step)
        sides.append((run_folder.flatten(checkpoints.manifest(step)["config"]), arrays))
    (old, before), (new, after) = sides
    config = [
        f"{key.replace('/', '.')}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    found: list[tuple[float, str]] = []
    for name in sorted(before.keys() | after.keys()):
        if name not in before or name not in after:
            found.append((np.inf, f"{name}: only in {second if name in after else first}"))
        elif before[name].shape != after[name].shape:
            found.append((np.inf, f"{name}: {list(before[name].shape)} -> {list(after[name].shape)}"))
        elif not np.array_equal(before[name], after[name]):
            x, y = before[name].astype(np.float64), after[name].astype(np.float64)
            share = float(np.linalg.norm(y - x)) / max(float(np.linalg.norm(x)), 1e-30)
            found.append(
                (share, f"{name}: differs by {share:.3g} of its norm, at most {np.abs(y - x).max():.3g}")
            )
    return config, [line for _, line in sorted(found, key=lambda pair: -pair[0])]


def copy(source: str, out: Path) -> int:
    """Copies one checkpoint, ``RUN@STEP`` or the newest whole one, as a run folder of its own. Returns its step.

    Raises UserError where ``out`` is there already, DataError where the checkpoint is damaged.
    """
    if out.exists():
        raise UserError(f"{out} is there already; name another folder")
    checkpoints, step = _open(source)
    run = checkpoints.folder.parent
    checkpoints.read_everything(step)
    with written_whole(out) as folder:
        for name in (run_folder.CONFIG, run_folder.TOKENIZER, SUMS):
            if (run / name).is_file():
                shutil.copyfile(run / name, folder / name)
        path = run / run_folder.METRICS_FILE
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            (folder / run_folder.METRICS_FILE).write_text("".join(kept), encoding="utf-8")
        place = folder / run_folder.CHECKPOINTS / str(step)
        shutil.copytree(checkpoints.folder / str(step), place)
        Checkpoints(place.parent).read_everything(step)
    return step


def prune(run: Path, *, keep: int, kept_steps: list[int]) -> list[int]:
    """Deletes all checkpoints but the newest ``keep`` whole ones and ``kept_steps``. Returns the deleted steps.

    Raises UserError where the run is in use or a step is not there, DataError where none would be left whole.
    """
    with run_folder.locked(run):
        checkpoints = open_run(run)
        steps = checkpoints.steps()
        if missing := sorted(set(kept_steps) - set(steps)):
            raise UserError(f"{run} has no checkpoint of step {missing}; it has {steps}")
        whole: list[int] = []
        for step in reversed(steps):
            if len(whole) == keep:
                break
            try:
                checkpoints.read_everything(step)
            except DataError:
                continue
            whole.append(step)
        if not whole:
            raise DataError(f"no checkpoint of {run} is whole; nothing was deleted")
        doomed = [step for step in steps if step not in (*whole, *kept_steps)]
        for step in doomed:
            shutil.rmtree(checkpoints.folder / str(step))
        return doomed


def _open(source: str) -> tuple[Checkpoints, int]:
    folder, step = split_step(source)
    checkpoints = open_run(folder)
    if step is not None:
        return checkpoints, find_step(folder, checkpoints, step)
    found = checkpoints.newest(lambda number: (checkpoints.manifest(number), number)[1])
    assert found is not None, "open_run has found a checkpoint"
    return checkpoints, found[0]
