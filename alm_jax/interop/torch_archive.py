"""Reads what `torch.save` wrote (.pt, .pth, .ckpt) without PyTorch, and without running anything of it.

Such a file is a pickle, which can name any function of Python and have it called. This reader knows a short list of
names: those of which tensors are made, and those of configs and numbers that trainers keep beside the weights, which
become objects that hold nothing. Any other name is refused before anything is done with it. Both layouts are read: the
ZIP file of PyTorch 1.6 and later, and the one before it.
"""

import collections
import dataclasses
import io
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from alm_jax.errors import UserError
from alm_jax.interop.safetensors_io import Arrays

_DTYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# What trainers keep beside the weights. None of it is imported: every name stands for an object that holds nothing.
_OPAQUE_MODULES = ("argparse", "omegaconf", "numpy", "pathlib", "typing")
_OPAQUE_NAMES = {
    ("_codecs", "encode"),
    ("builtins", "dict"),
    ("builtins", "int"),
    ("builtins", "list"),
    ("builtins", "set"),
    ("builtins", "str"),
    ("torch", "device"),
    ("torch", "Size"),
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


@dataclasses.dataclass(eq=False)
class _Storage:
    """The numbers that tensors are views of; ``load`` reads them when they are asked for."""

    dtype: np.dtype
    size: int
    load: Callable[[], bytes] | None = None

    def read(self) -> np.ndarray:
        """Every number, flat."""
        content = b"" if self.load is None else self.load()
        if len(content) != self.size * self.dtype.itemsize:
            raise UserError(
                f"a storage has {len(content)} bytes, expected {self.size} of {self.dtype}; copy the file again"
            )
        return np.frombuffer(content, self.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class ArchiveTensor:
    """A tensor of an archive, not read yet."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""

    def read(self) -> np.ndarray:
        """Its numbers. Raises UserError where the file does not hold them."""
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if math.prod(self.shape) and not (
            self.offset >= 0 and min(self.strides, default=0) >= 0 and last < self.storage.size
        ):
            raise UserError(
                f"a tensor of shape {self.shape} lies outside of its storage; copy the file again"
            )
        flat = self.storage.read()
        strides = [step * flat.itemsize for step in self.strides]
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides, writeable=False)
        little = flat.dtype.newbyteorder("=")
        return np.ascontiguousarray(view).reshape(self.shape).astype(little, copy=True)


class Opaque:
    """In place of an object that is no tensor and no plain Python value; remembers nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """What the pickle would add to a list."""

    def extend(self, items: Any) -> None:
        """What the pickle would add to a list."""

    def add(self, item: Any) -> None:
        """What the pickle would add to a set."""


class _Reader(pickle.Unpickler):
    """An unpickler that knows a list of names, and gives each its own meaning."""

    def __init__(self, file: Any, make_storage: Callable[[str, np.dtype, int], _Storage]):
        super().__init__(file)
        self._make_storage = make_storage

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name of the pickle. Raises UserError for one that is not on the list."""
        module = {"__builtin__": "builtins"}.get(module, module)  # Python 2's, which old protocols write
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("collections", "defaultdict"):
            return _Dict
        if (module, name) in (
            ("torch._utils", "_rebuild_tensor"),
            ("torch._utils", "_rebuild_tensor_v2"),
        ):
            return self._rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return self._rebuild_parameter
        if module == "torch" and name in _DTYPES:
            return _StorageKind(name)
        # A dotted name reaches into what a module has imported itself, where anything may be.
        if "." not in name and (
            module.partition(".")[0] in _OPAQUE_MODULES or (module, name) in _OPAQUE_NAMES
        ):
            return type(name, (Opaque,), {})
        raise UserError(
            f"the archive asks for {module}.{name}, which no weights are made of; nothing of it was run. Where you "
            "trust it, load it with PyTorch and save its state dict alone"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage that a tensor is a view of."""
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            raise UserError(f"the archive refers to {pid!r:.60}, expected a storage")
        _, kind, key, _, size = pid[:5]
        if not isinstance(kind, _StorageKind) or (len(pid) > 5 and pid[5] is not None):
            raise UserError("the archive has a storage of a kind that is not read; save its state dict anew")
        return self._make_storage(str(key), np.dtype(_DTYPES[kind.name]), int(size))

    @staticmethod
    def _rebuild_tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> ArchiveTensor:
        return ArchiveTensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))

    @staticmethod
    def _rebuild_parameter(tensor: ArchiveTensor, *_: Any) -> ArchiveTensor:
        return tensor


@dataclasses.dataclass(frozen=True)
class _StorageKind:
    name: str


class _Dict(dict[Any, Any]):
    """A defaultdict, whose factory is not called."""

    def __init__(self, *_: Any):
        super().__init__()


def read_torch_archive(path: str | Path) -> Any:
    """What `torch.save` was given: dicts, lists and numbers, with `ArchiveTensor` for tensors, unread yet.

    Raises:
        UserError: there is no such file, it is not such an archive, is damaged, or names what is not on the list.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected an archive of torch.save")
    try:
        return _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle raises anything
        raise UserError(
            f"{path}: not an archive of torch.save, or a damaged one ({type(error).__name__}: {error}); copy it again"
        ) from error


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise UserError("a ZIP file, but not one of torch.save (no data.pkl)")
        root = pickles[0].removesuffix("data.pkl")
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in names else b"little"
        content = archive.read(pickles[0])

    def make(key: str, dtype: np.dtype, size: int) -> _Storage:
        def load() -> bytes:
            with zipfile.ZipFile(path) as archive:
                return archive.read(f"{root}data/{key}")

        return _Storage(dtype.newbyteorder(">") if order == b"big" else dtype, size, load)

    return _Reader(io.BytesIO(content), make).load()


def _read_legacy(path: Path) -> Any:
    """Before PyTorch 1.6: five pickles in a row, and the storages after them."""
    storages: dict[str, _Storage] = {}

    def make(key: str, dtype: np.dtype, size: int) -> _Storage:
        return storages.setdefault(key, _Storage(dtype, size))

    with path.open("rb") as file:
        if _Reader(file, make).load() != _LEGACY_MAGIC or _Reader(file, make).load() != _LEGACY_PROTOCOL:
            raise UserError("not an archive of torch.save")
        system = _Reader(file, make).load()
        if not system.get("little_endian", True):
            raise UserError("written on a big-endian machine; load it with PyTorch and save it anew")
        result = _Reader(file, make).load()
        for key in _Reader(file, make).load():
            size = int.from_bytes(file.read(8), "little")
            storage = storages[str(key)]
            content = file.read(size * storage.dtype.itemsize)
            storage.load = lambda content=content: content  # type: ignore[misc]
    return result


def find_tensors(archive: Any, entry: tuple[str, ...] = (), prefix: str = "") -> dict[str, ArchiveTensor]:
    """The tensors of the state dict at ``entry``, by key without ``prefix``; empty where there is none.

    Keys without the prefix, and values that are no tensors, are left out: they are the trainer's.
    """
    for name in entry:
        if not isinstance(archive, Mapping) or name not in archive:
            return {}
        archive = archive[name]
    if not isinstance(archive, Mapping):
        return {}
    return {
        key.removeprefix(prefix): value
        for key, value in archive.items()
        if isinstance(key, str) and key.startswith(prefix) and isinstance(value, ArchiveTensor)
    }


def read_tensors(tensors: Mapping[str, ArchiveTensor]) -> Arrays:
    """Their numbers. Raises UserError where the file does not hold them."""
    arrays: Arrays = {}
    for key, tensor in tensors.items():
        try:
            arrays[key] = tensor.read()
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
    return arrays
