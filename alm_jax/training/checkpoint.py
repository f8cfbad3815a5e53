"""Checkpoints: their layout, their integrity, and reading, which never changes the folder.

Orbax commits atomically, but detects neither a flipped bit in an array nor a change of dtype. So each checkpoint has
a manifest with the shape, dtype and checksum of every array, and a checksum of the manifest itself. A restore
verifies them and falls back, with a warning, to the newest good step. The checksums are computed on the devices and
do not depend on the sharding. `alm_jax.training.checkpoint_writer` writes, for the one process that holds a run's
lock.
"""

import contextlib
import gc
import hashlib
import json
import logging
import re
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array

from alm_jax.errors import AlmError, DataError, UserError
from alm_jax.training.state import TrainState
from alm_jax.types import PyTree

FORMAT = 2
"""Version of the layout that is written. Version 1, which has no checksum of the manifest, can still be read."""
READABLE = (1, FORMAT)
CHECKSUM = "checksum"
"""Key of the manifest that holds the SHA-256 of the rest of it."""
RETRY_WAITS_SEC = (0.2, 1.0, 3.0)
"""Waiting times, seconds, before a file that could not be read is tried again: file system faults are often
transient."""
BLOCK_BYTES = 2**24

log = logging.getLogger(__name__)
T = TypeVar("T")


class ReadError(DataError):
    """The file system did not return the bytes of a checkpoint: whether they are good is unknown."""


class _Gone(Exception):
    """A checkpoint was deleted while it was read, as a running run deletes its oldest ones."""


def as_tree(state: TrainState) -> dict[str, PyTree]:
    """Converts the state to nested dicts, as it is written; entries that are None are left out."""
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
    return {name: value for name, value in fields.items() if jax.tree.leaves(value)}


def checksum(x: Array) -> Array:
    """Checksum of an array, uint32: the sum of its words, each times its own odd number, modulo 2^32.

    Odd factors make every single flipped bit visible, and integer addition makes the result independent of the
    sharding.
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
    """Describes every array of ``tree`` by path: shape, dtype and, where requested, checksum."""
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


def by_path(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of a tree by path, as a manifest names them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(_part(part) for part in path): leaf for path, leaf in leaves}


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


def host_checksum(x: np.ndarray) -> int:
    """Computes `checksum` of an array in host memory with NumPy."""
    width = {1: np.uint8, 2: np.uint16}.get(x.dtype.itemsize, np.uint32)
    words = np.ascontiguousarray(x).reshape(-1).view(width)
    total = 0
    for start in range(0, len(words), BLOCK_BYTES):
        block = words[start : start + BLOCK_BYTES].astype(np.uint64)
        index = np.arange(start, start + len(block), dtype=np.uint64)
        # Products of 32-bit words and sums of them wrap at 2^64, which keeps them right modulo 2^32.
        total += int(np.sum(block * ((2 * index + 1) % 2**32), dtype=np.uint64))
    return total % 2**32


def seal(manifest: dict[str, Any]) -> dict[str, Any]:
    """Adds to a manifest its own checksum."""
    return manifest | {CHECKSUM: _digest(manifest)}


def _digest(manifest: dict[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """The checkpoints of a run in ``folder``, for reading. Nothing in the folder is changed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._alias: Path | None = None

    def steps(self) -> list[int]:
        """Committed steps, oldest first; empty where the folder does not exist. Raises ReadError where it cannot be
        read."""
        return _retried(self.folder, self._steps)

    def _steps(self) -> list[int]:
        try:
            return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def manifest(self, step: int) -> dict[str, Any]:
        """Returns the run information (config, data fingerprint) stored with the checkpoint of ``step``.

        Raises DataError where it is damaged, ReadError where it cannot be read, UserError where it has an unknown
        version.
        """
        where = self.folder / str(step)
        path = where / "manifest" / "metadata"
        try:
            content = _retried(path, path.read_bytes)
        except FileNotFoundError as error:
            if not where.exists():
                raise _Gone from error
            raise DataError(f"checkpoint {where} is damaged: it has no manifest") from error
        try:
            manifest = json.loads(content)
            found, has_checksum = manifest.get("format"), CHECKSUM in manifest
        except (ValueError, AttributeError) as error:
            raise DataError(f"checkpoint {where} is damaged: its manifest is no JSON object") from error
        if (has_checksum or found == FORMAT) and manifest.get(CHECKSUM) != _digest(manifest):
            raise DataError(f"checkpoint {where} is damaged: the checksum of its manifest differs")
        if found not in READABLE:
            raise UserError(
                f"checkpoint {where} has format {found}, this version reads {FORMAT} and older: install the version "
                "of alm_jax that wrote it"
            )
        if not {"arrays", "config"} <= manifest.keys() and found == 1:
            raise DataError(f"checkpoint {where} is damaged: its manifest lacks fields")
        return manifest

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """Restores the state saved at ``step``, laid out like ``abstract``.

        Raises UserError where names, shapes or dtypes differ, DataError where the bytes on disk are not those that
        were saved, ReadError where they cannot be read.
        """
        where = f"checkpoint {self.folder / str(step)}"
        saved = self.manifest(step)["arrays"]
        wanted = as_tree(abstract)
        check_same_arrays(saved, describe_arrays(wanted, with_checksums=False), where)

        def read(path: Path) -> PyTree:
            with ocp.StandardCheckpointer() as orbax:
                return orbax.restore(path / "state", wanted)

        tree = self._read(step, read)
        found = describe_arrays(tree, with_checksums=True)
        self._check_sums(where, saved, {name: entry["checksum"] for name, entry in found.items()})
        # What has no array was not written: an average that is off, statistics of a model without any.
        return TrainState(
            **{name: tree.get(name, getattr(abstract, name)) for name in abstract.__dataclass_fields__}
        )

    def read_arrays(self, step: int, fields: tuple[str, ...]) -> dict[str, Any]:
        """Reads some fields of the state of ``step`` as nested dicts of host arrays; fields that were not saved are
        absent.

        Raises as `restore` does.
        """
        saved = self.manifest(step)["arrays"]
        names = [name for name in saved if name.partition("/")[0] in fields]
        wanted: dict[str, Any] = {}
        for name in names:
            *branches, leaf = name.split("/")
            tree = wanted
            for branch in branches:
                tree = tree.setdefault(branch, {})
            tree[leaf] = jax.ShapeDtypeStruct(saved[name]["shape"], jnp.dtype(saved[name]["dtype"]))

        def read(path: Path) -> PyTree:
            kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            args = ocp.args.PyTreeRestore(item=wanted, restore_args=kinds, partial_restore=True)
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
                return orbax.restore(path / "state", args=args)

        tree = self._read(step, read)
        found = {name: host_checksum(leaf) for name, leaf in by_path(tree).items()}
        self._check_sums(
            f"checkpoint {self.folder / str(step)}", {name: saved[name] for name in names}, found
        )
        return tree

    def read_everything(self, step: int) -> dict[str, np.ndarray]:
        """Reads every array of ``step`` by its path, to the host. Raises as `restore` does."""
        saved = self.manifest(step)["arrays"]

        def read(path: Path) -> PyTree:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
                there = orbax.metadata(path / "state").item_metadata.tree
                kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), there)
                return orbax.restore(path / "state", args=ocp.args.PyTreeRestore(restore_args=kinds))

        arrays = by_path(self._read(step, read))
        found = {name: host_checksum(leaf) for name, leaf in arrays.items()}
        self._check_sums(f"checkpoint {self.folder / str(step)}", saved, found)
        return arrays

    def newest(self, read: Callable[[int], T]) -> tuple[T, list[int]] | None:
        """Applies ``read`` to the newest undamaged step; returns its result, and the damaged steps after it, newest
        first.

        None where there is no checkpoint. Raises DataError where all checkpoints are damaged, and ReadError where one
        cannot be read: falling back to an older one would discard training that may be intact.
        """
        damaged: list[int] = []
        while steps := [step for step in self.steps() if step not in damaged]:
            try:
                return read(steps[-1]), damaged
            except _Gone:
                continue
            except ReadError:
                raise
            except DataError as error:
                log.warning("%s; falling back to the checkpoint before it", error)
                damaged.append(steps[-1])
        if damaged:
            raise DataError(
                f"none of the checkpoints {sorted(damaged)} in {self.folder} is whole. Nothing was changed: bring one "
                "of them back from a copy, or start another --workdir"
            )
        return None

    def restore_newest(self, abstract: TrainState) -> TrainState | None:
        """Restores the newest undamaged state; None where there is no checkpoint. Raises as `newest` does."""
        found = self.newest(lambda step: self.restore(step, abstract))
        return None if found is None else found[0]

    @property
    def orbax_folder(self) -> Path:
        """Returns the folder under a name that Orbax takes literally: it searches some of its files by patterns."""
        absolute = self.folder.absolute()
        if not re.search(r"[^\w./ -]", str(absolute)):
            return absolute
        if self._alias is None:
            holder = tempfile.mkdtemp(prefix="alm-")
            self._alias = Path(holder) / "checkpoints"
            self._alias.symlink_to(absolute)
            weakref.finalize(self, shutil.rmtree, holder, True)
        return self._alias

    def _read(self, step: int, read: Callable[[Path], PyTree]) -> PyTree:
        """Applies ``read`` to the folder of a step, and retries where a file cannot be read."""
        where = self.folder / str(step)
        is_retried = False
        for wait_sec in (*RETRY_WAITS_SEC, None):
            try:
                with _quiet_failures():
                    return read(self.orbax_folder / str(step))
            except (jax.errors.JaxRuntimeError, MemoryError) as error:
                raise AlmError(f"checkpoint {where} could not be placed in memory: {error}") from error
            # Orbax and tensorstore raise many types, so the files themselves say what is wrong.
            except Exception as error:
                unread = first_unreadable(where)
                if isinstance(unread, _Gone):
                    raise unread from error
                if unread is None and is_retried:
                    raise DataError(
                        f"checkpoint {where} is damaged: {(str(error).splitlines() or [repr(error)])[0][:300]}"
                    ) from error
                if unread is not None and wait_sec is None:
                    raise _read_error(where, unread) from error
                is_retried = unread is None
            time.sleep(wait_sec or 0)
        raise DataError(f"checkpoint {where} is damaged")

    def _check_sums(self, where: str, saved: dict[str, dict[str, Any]], found: dict[str, int]) -> None:
        damaged = [name for name in saved if saved[name]["checksum"] != found.get(name)]
        if damaged:
            raise DataError(
                f"{where} is damaged: the checksums of {len(damaged)} array(s) differ, {damaged[0]} first"
            )


def first_unreadable(folder: Path) -> Exception | None:
    """Returns why a file below ``folder`` cannot be read; None where every byte can be."""
    try:
        if not folder.is_dir():
            return _Gone()
        for path in sorted(folder.rglob("*")):
            if not path.is_dir():
                with path.open("rb", buffering=0) as file:
                    while file.read(BLOCK_BYTES):
                        pass
    except OSError as error:
        return error if folder.is_dir() else _Gone()
    return None


def _retried(path: Path, read: Callable[[], T]) -> T:
    """Calls ``read()``, and retries after file system errors. Raises ReadError, or FileNotFoundError."""
    for wait_sec in (*RETRY_WAITS_SEC, None):
        try:
            return read()
        except FileNotFoundError:
            raise
        except OSError as error:
            if wait_sec is None:
                raise _read_error(path, error) from error
            time.sleep(wait_sec)
    raise AssertionError("the last attempt returns or raises")


def _read_error(path: Path, error: Exception) -> ReadError:
    return ReadError(
        f"{path} cannot be read: {error} (tried {len(RETRY_WAITS_SEC) + 1} times). That is not damage, and nothing was "
        "changed: see to the file system or its permissions, then run the same command again"
    )


@contextlib.contextmanager
def _quiet_failures() -> Iterator[None]:
    """Suppresses what the other readers of a failed restore print when they are collected; the error says it
    already."""
    hook, asyncio_log = sys.unraisablehook, logging.getLogger("asyncio")
    level = asyncio_log.level
    sys.unraisablehook = lambda _: None
    asyncio_log.setLevel(logging.CRITICAL)
    try:
        yield
    except Exception:
        gc.collect()
        raise
    finally:
        sys.unraisablehook = hook
        asyncio_log.setLevel(level)
