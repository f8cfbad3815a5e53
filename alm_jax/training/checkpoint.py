"""Checkpoints: Orbax's atomic, asynchronous commits, and the integrity that Orbax leaves to its users.

Orbax detects neither a flipped bit in an array nor a change of dtype. So each checkpoint carries the shape,
dtype and checksum of every array; a restore verifies them and falls back, aloud, to the last step that is good.
The checksum is computed on the devices and does not depend on how the arrays are cut over them.
"""

import json
import logging
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import Array

from alm_jax.errors import AlmError, DataError, UserError
from alm_jax.training.state import TrainState
from alm_jax.types import PyTree

FORMAT = 1
"""Version of the layout below; a reader of another version refuses."""
PACKAGES = ("alm_jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")

log = logging.getLogger(__name__)


def as_tree(state: TrainState) -> dict[str, PyTree]:
    """The state as nested dicts, as it is written; what is None is left out."""
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
    return {name: value for name, value in fields.items() if jax.tree.leaves(value)}


def checksum(x: Array) -> Array:
    """uint32: the sum of the array's words, each times an odd number of its own, modulo 2^32.

    An odd factor keeps every single flipped bit visible, and integer addition makes the result the same
    however the array is cut over devices.
    """
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    # Types of 8 bytes split into a trailing axis of two words; smaller ones widen.
    width = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    words = jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32)
    index = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(words * (2 * index + 1), dtype=jnp.uint32)


@jax.jit
def _checksums(leaves: list[Array]) -> list[Array]:
    return [checksum(leaf) for leaf in leaves]


def describe_arrays(tree: PyTree, *, with_checksums: bool) -> dict[str, dict[str, Any]]:
    """Shape, dtype and (where asked) checksum of every array of ``tree``, by path."""
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True)
    names = ["/".join(_part(part) for part in path) for path in paths]
    table: dict[str, dict[str, Any]] = {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for name, leaf in zip(names, leaves, strict=True)
    }
    if with_checksums:
        for name, value in zip(names, jax.device_get(_checksums(list(leaves))), strict=True):
            table[name]["checksum"] = int(value)
    return table


def _part(part: Any) -> str:
    return str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part))))


def check_same_arrays(
    found: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]], where: str
) -> None:
    """Raises UserError with a table of the differences unless names, shapes and dtypes agree."""
    rows = []
    for name in sorted(set(found) | set(expected)):
        old, new = (
            f"{table[name]['dtype']}{table[name]['shape']}" if name in table else "absent"
            for table in (found, expected)
        )
        if old != new:
            rows.append(f"  {name}: {old} in the checkpoint, {new} in this run")
    if rows:
        more = f"\n  ... and {len(rows) - 20} more" if len(rows) > 20 else ""
        raise UserError(
            f"{where} does not fit this run's model and optimizer:\n"
            + "\n".join(rows[:20])
            + more
            + "\nRun with the config that the checkpoint was made with, or in another --workdir."
        )


class Checkpoints:
    """The checkpoints of one run, in ``folder``."""

    def __init__(self, folder: Path, *, keep: int, manifest: dict[str, Any] | None = None):
        """``manifest``: what each checkpoint states of the run (resolved config, data fingerprint)."""
        self.folder = folder
        self._manifest = manifest or {}
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(keep), cleanup_tmp_directories=True
            ),
            item_names=("state", "manifest"),
        )

    def save(self, state: TrainState, *, wait: bool = False) -> None:
        """Starts writing ``state`` in the background; with ``wait``, returns once it is committed.

        Raises AlmError where this save, or an earlier one in the background, failed; the checkpoints
        committed before stay as they are.
        """
        tree = as_tree(state)
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        manifest = self._manifest | {
            "format": FORMAT,
            "step": step,
            "versions": {name: metadata.version(name) for name in PACKAGES},
            "arrays": describe_arrays(tree, with_checksums=True),
        }
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(tree), manifest=ocp.args.JsonSave(manifest)
                ),
            )
            if wait:
                self.wait()
        except (OSError, ValueError) as error:
            raise AlmError(self._explain(error, tree)) from error

    def wait(self) -> None:
        """Returns once every save is committed; raises what went wrong in the background."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def _explain(self, error: Exception, tree: PyTree) -> str:
        needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        free = shutil.disk_usage(self.folder).free
        return (
            f"a checkpoint could not be written to {self.folder}: {error}. It takes about {needed / 1e6:.0f} MB "
            f"and {free / 1e6:.0f} MB are free there; the checkpoints before it are intact"
        )

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        return sorted(self._manager.all_steps())

    def manifest(self, step: int) -> dict[str, Any]:
        """What the checkpoint of ``step`` states of itself. Raises DataError where it cannot be read."""
        path = self.folder / str(step) / "manifest" / "metadata"
        try:
            manifest = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise DataError(
                f"the manifest of checkpoint {path.parents[1]} cannot be read: {error}"
            ) from error
        if manifest.get("format") != FORMAT:
            raise UserError(
                f"checkpoint {path.parents[1]} has format {manifest.get('format')}, this version reads {FORMAT}"
            )
        return manifest

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state saved at ``step``, laid out as ``abstract`` says.

        Raises UserError where names, shapes or dtypes differ, DataError where the bytes on disk are not
        those that were saved.
        """
        where = f"checkpoint {self.folder / str(step)}"
        saved = self.manifest(step)["arrays"]
        wanted = as_tree(abstract)
        check_same_arrays(saved, describe_arrays(wanted, with_checksums=False), where)
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
            )
        # Orbax and tensorstore raise many types for damaged files, all of which mean the same here.
        except Exception as error:
            raise DataError(f"{where} cannot be read: {str(error).splitlines()[0][:300]}") from error
        tree = restored["state"]
        found = describe_arrays(tree, with_checksums=True)
        damaged = [name for name in saved if saved[name]["checksum"] != found[name]["checksum"]]
        if damaged:
            raise DataError(
                f"{where} is damaged: the checksums of {len(damaged)} array(s) differ, {damaged[0]} first"
            )
        # What has no array was not written: an average that is off, statistics of a model without any.
        return TrainState(
            **{name: tree.get(name, getattr(abstract, name)) for name in abstract.__dataclass_fields__}
        )

    def restore_latest(self, abstract: TrainState) -> TrainState | None:
        """The newest checkpoint that is whole, or None where there is none at all.

        A damaged one is reported, set aside under ``damaged-<step>``, and the one before it is tried.
        Raises DataError where there are checkpoints and all of them are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.restore(step, abstract)
            except DataError as error:
                log.warning("%s; falling back to the checkpoint before it", error)
                if jax.process_index() == 0:
                    (self.folder / str(step)).rename(self.folder / f"damaged-{step}")
                self._manager.reload()
        if steps:
            raise DataError(
                f"none of the checkpoints {steps} in {self.folder} can be read; they are kept as damaged-*"
            )
        return None

    def close(self) -> None:
        """Waits for what is being written, and lets go of the folder."""
        self._manager.close()
