"""Writing checkpoints with Orbax, atomically and asynchronously, by the one process that holds a run's folder."""

import logging
import shutil
import threading
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from alm_jax.errors import AlmError
from alm_jax.training.checkpoint import FORMAT, Checkpoints, as_tree, describe_arrays, seal
from alm_jax.training.file_sums import write_sums
from alm_jax.training.state import TrainState
from alm_jax.types import PyTree

PACKAGES = ("alm_jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
TEMPORARY = ".orbax-checkpoint-tmp"
"""Part of the name of a folder that Orbax has not committed."""
DELETED = ".deleted"
"""Suffix of a checkpoint that is being deleted, so that readers see it whole or not at all."""
DAMAGED = "damaged-"
"""Prefix of a damaged checkpoint that was set aside."""

log = logging.getLogger(__name__)


class CheckpointWriter(Checkpoints):
    """The checkpoints of one run, for writing. Every process of the run opens it."""

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        also: Callable[[list[int]], set[int]] = lambda steps: set(),
        manifest: dict[str, Any] | None = None,
    ):
        """Removes what a killed save or deletion left behind.

        ``keep``: number of newest checkpoints to keep. ``also``: returns which of all saved steps to keep besides.
        ``manifest``: run information stored with each (resolved config, data fingerprint).
        """
        super().__init__(folder)
        self._keep, self._also = keep, also
        self._manifest = manifest or {}
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
        _sync("checkpoints opened")
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler("state", "manifest"))
        self._finisher: threading.Thread | None = None
        self._failure: AlmError | None = None

    def save(self, state: TrainState, *, wait: bool = False) -> None:
        """Starts writing ``state`` in the background; with ``wait``, returns once it is committed.

        A failure in the background is reported when it happens and does not affect later saves. Raises AlmError where
        the save fails before it reaches the background, or at any point with ``wait``. Committed checkpoints are
        never changed by a failure.
        """
        self._finish()
        tree, step = as_tree(state), int(state.step)
        if step in self.steps():
            return
        manifest = self._manifest | {
            "format": FORMAT,
            "step": step,
            "versions": {name: metadata.version(name) for name in PACKAGES},
            "arrays": describe_arrays(tree, with_checksums=True),
        }
        self._failure = None
        try:
            self._orbax.save(
                self.orbax_folder / str(step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(tree), manifest=ocp.args.JsonSave(seal(manifest))
                ),
            )
        except (OSError, ValueError) as error:
            raise self._failed(error, tree) from error
        self._finisher = threading.Thread(
            target=self._commit, args=(tree, step, wait), name="checkpoint", daemon=True
        )
        self._finisher.start()
        if wait:
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is committed. Raises AlmError where it failed."""
        self._finish()
        if self._failure is not None:
            raise self._failure

    def _finish(self) -> None:
        if self._finisher is not None:
            self._finisher.join()
            self._finisher = None

    def _commit(self, tree: PyTree, step: int, is_awaited: bool) -> None:
        """Waits in a background thread until the save is committed."""
        try:
            self._orbax.wait_until_finished()
        except Exception as error:
            self._failure = self._failed(error, tree)
            if not is_awaited:
                log.warning("%s; training goes on, and the next save tries again", self._failure)
        else:
            if jax.process_index() == 0:
                self._write_sums(step)
                self._prune()

    def _failed(self, error: Exception, tree: PyTree) -> AlmError:
        needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        free = shutil.disk_usage(self.folder).free
        if jax.process_index() == 0:
            self._remove_leftovers()
        reason = (str(error).splitlines() or [repr(error)])[0][:300]
        return AlmError(
            f"a checkpoint could not be written to {self.folder}: {reason}. It takes about {needed / 1e6:.0f} MB "
            f"({needed:,} bytes) and {free / 1e6:.0f} MB ({free:,} bytes) were free there; the checkpoints before it "
            "are intact"
        )

    def _write_sums(self, step: int) -> None:
        """For ``alm checkpoint verify``, which finds a changed bit in any file; without them it checks the arrays."""
        try:
            write_sums(self.folder / str(step))
        except OSError as error:
            log.warning("checkpoint %s has no sums of its files: %s", step, error)

    def _prune(self) -> None:
        """Deletes the oldest checkpoints so that no reader sees an incomplete one."""
        try:
            steps = self.steps()
            stay = {*steps[-self._keep :], *self._also(steps)}
            for step in sorted(set(steps) - stay):
                doomed = self.folder / f"{step}{DELETED}"
                (self.folder / str(step)).rename(doomed)
                shutil.rmtree(doomed)
        except OSError as error:
            log.warning("an old checkpoint could not be deleted: %s", error)

    def _remove_leftovers(self) -> None:
        for path in self.folder.iterdir():
            if TEMPORARY in path.name or path.name.endswith(DELETED):
                shutil.rmtree(path, ignore_errors=True)

    def restore_newest(self, abstract: TrainState) -> TrainState | None:
        """Restores the newest undamaged state; damaged ones after it are renamed to ``damaged-<step>``.

        None where there is no checkpoint. Raises DataError where all of them are damaged or one cannot be read; then
        nothing is changed.
        """
        found = self.newest(lambda step: self.restore(step, abstract))
        if found is None:
            return None
        state, damaged = found
        if jax.process_index() == 0:
            for step in damaged:
                self._set_aside(step)
        _sync("damaged checkpoints set aside")
        return state

    def _set_aside(self, step: int) -> None:
        names = [f"{DAMAGED}{step}", *(f"{DAMAGED}{step}-{count}" for count in range(2, 1000))]
        free = next(name for name in names if not (self.folder / name).exists())
        (self.folder / str(step)).rename(self.folder / free)
        log.warning("checkpoint %s is kept as %s", step, self.folder / free)

    def close(self) -> None:
        """Waits for the running save and closes."""
        self._finish()
        self._orbax.close()


def _sync(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
