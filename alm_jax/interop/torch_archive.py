"""Reads what `torch.save` wrote (.pt, .pth, .ckpt) without PyTorch, and without running anything of it.

Such a file is a pickle, which can name any function of Python and have it called. This reader knows a short list of
names: those needed for tensors, and those of configs and numbers that trainers store with the weights, which become
empty objects. Any other name is refused, and none is imported. Both layouts are read: the ZIP file of PyTorch 1.6 and
later, and the one before it. Sizes that the file claims are checked against its real size: members are stored and not
compressed, and a tensor is no larger than the numbers that it views.
"""

import dataclasses
import functools
import io
import mmap
import operator
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from alm_jax.errors import UserError, as_user_error
from alm_jax.interop.pickled import Name, Opaque, read_pickle
from alm_jax.interop.safetensors_io import Arrays

_STORAGES: dict[str, Any] = {
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
WEIGHT_DTYPES = frozenset(np.dtype(kind) for kind in _STORAGES.values())
"""Dtypes that weights and counters of a format may have."""
_OTHER_STORAGES: dict[str, Any] = {
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
    "UntypedStorage": np.uint8,
}
_DTYPES: dict[str, Any] = {
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
}
"""Dtypes without their own storage type; PyTorch names them beside untyped bytes."""
_PYTHON_2 = {"__builtin__": "builtins"}
# What stands beside the weights: trainers' options, and all else that `torch.load(weights_only=True)` takes. None of
# it is imported: every name stands for an object that holds nothing.
_OPAQUE_MODULES = ("argparse", "omegaconf", "numpy", "pathlib", "typing")
_STORAGE_NAMES = (*_STORAGES, *_OTHER_STORAGES, "QInt32Storage", "QInt8Storage", "QUInt8Storage")
_NAMES: dict[str, tuple[str, ...]] = {
    "_codecs": ("encode",),
    "builtins": ("bytearray", "complex", "dict", "frozenset", "int", "list", "set", "str"),
    "collections": ("OrderedDict", "defaultdict", "Counter"),
    "torch": (
        *("Size", "Tensor", "device"),
        *_STORAGE_NAMES,
        *_DTYPES,
        *("bool", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64", "bfloat16"),
        *("complex32", "complex64", "complex128", "float4_e2m1fn_x2"),
        *(
            "bits16",
            "bits1x8",
            "bits2x4",
            "bits4x2",
            "bits8",
            "qint32",
            "qint8",
            "quint2x4",
            "quint4x2",
            "quint8",
        ),
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
        *(f"per_{what}_{kind}" for what in ("channel", "tensor") for kind in ("affine", "symmetric")),
        "per_channel_affine_float_qparams",
    ),
    "torch.cuda": _STORAGE_NAMES,
    "torch.storage": ("UntypedStorage", "TypedStorage"),
    "torch.nn.parameter": ("Parameter",),
    "torch.serialization": ("_get_layout",),
    "torch._tensor": ("_rebuild_from_type_v2",),
    "torch._utils": (
        *("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"),
        *("_rebuild_parameter", "_rebuild_parameter_with_state"),
        # Their objects hold nothing.
        *("_rebuild_device_tensor_from_cpu_tensor", "_rebuild_device_tensor_from_numpy"),
        *("_rebuild_meta_tensor_no_storage", "_rebuild_nested_tensor", "_rebuild_qtensor"),
        *("_rebuild_sparse_tensor", "_rebuild_wrapper_subclass"),
    ),
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_SHARED = 4
"""Limit for tensors that view the same numbers, as tied weights do: all tensors together may have at most this many
times the bytes that the file holds, plus `_FREE_BYTES`."""
_FREE_BYTES = 1 << 26


@dataclasses.dataclass(eq=False)
class _Storage:
    """The numbers that tensors view; ``load`` reads them on demand."""

    dtype: np.dtype
    size: int
    load: Callable[[], bytes] | None = None

    @property
    def num_bytes(self) -> int:
        """Size of the numbers, bytes."""
        return self.size * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Returns every number, flat. Raises UserError where the file does not hold them."""
        with as_user_error("a storage cannot be read; copy the file again"):
            content = b"" if self.load is None else self.load()
        if len(content) != self.num_bytes:
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
    """Distance between neighbours along each axis, in elements; ``offset`` is counted in elements too."""

    @property
    def dtype(self) -> np.dtype:
        """Dtype of its numbers."""
        return self.storage.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(functools.reduce(operator.mul, self.shape, 1))

    @property
    def num_bytes(self) -> int:
        """Size of its numbers, bytes."""
        return self.size * self.dtype.itemsize

    def check(self) -> None:
        """Raises UserError where it lies outside of its storage, or is larger."""
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        is_inside = self.offset >= 0 and min(self.strides, default=0) >= 0 and last < self.storage.size
        if min(self.shape, default=0) < 0 or (self.size and not is_inside):
            raise UserError(
                f"a tensor of shape {self.shape} lies outside of its storage; copy the file again"
            )
        if self.size > self.storage.size:
            raise UserError(
                f"a tensor of shape {self.shape} repeats the {self.storage.size} numbers of its storage; save it "
                "whole, as tensor.contiguous()"
            )

    def read(self) -> np.ndarray:
        """Reads its numbers. Raises UserError where the file does not hold them."""
        self.check()
        return self.view(self.storage.read())

    def view(self, flat: np.ndarray) -> np.ndarray:
        """Copies its numbers out of those of the whole storage."""
        strides = [step * flat.itemsize for step in self.strides]
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides, writeable=False)
        little = flat.dtype.newbyteorder("=")
        return np.ascontiguousarray(view).reshape(self.shape).astype(little, copy=True)


class _Maker:
    """Decides which values stand for the objects of an archive."""

    def __init__(self, file_bytes: int, make_storage: Callable[[str, np.dtype, int], _Storage]):
        self._file_bytes = file_bytes
        self._make_storage = make_storage

    def check(self, name: Name) -> None:
        """Raises UserError for a name that is not on the list."""
        module = _PYTHON_2.get(name.module, name.module)
        # A dotted name reaches into what a module has imported itself, where anything may be.
        if "." in name.name or not (
            module.partition(".")[0] in _OPAQUE_MODULES or name.name in _NAMES.get(module, ())
        ):
            raise UserError(
                f"the archive asks for {name.module}.{name.name}, which no weights are made of; nothing of it was run. "
                "Where you trust it, load it with PyTorch and save its state dict alone"
            )

    def call(self, called: Name, arguments: tuple[Any, ...]) -> Any:
        """Makes a tensor, a dict, or an empty object."""
        match called.module, called.name:
            case "collections", _:
                content = arguments[0] if arguments else {}
                if isinstance(content, list):  # of pairs, as old protocols write it
                    content = {key: value for key, value in content if isinstance(key, str)}
                return dict(content) if isinstance(content, dict) else {}
            case "torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2":
                return _make_tensor(*arguments[:4])
            case "torch._utils", "_rebuild_tensor_v3":
                storage, dtype = arguments[0], arguments[6]
                if not isinstance(dtype, Name) or dtype.name not in _DTYPES:
                    return Opaque()
                kind = np.dtype(_DTYPES[dtype.name]).newbyteorder(storage.dtype.byteorder)
                typed = _Storage(kind, storage.num_bytes // kind.itemsize, storage.load)
                return _make_tensor(typed, *arguments[1:4])
            case "torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state":
                return arguments[0]
            case "torch._tensor", "_rebuild_from_type_v2":
                function, _, inner = arguments[:3]
                return self.call(function, tuple(inner)) if isinstance(function, Name) else Opaque()
        return Opaque()

    def load(self, where: Any) -> _Storage:
        """Returns the storage that a tensor views."""
        if not (isinstance(where, tuple) and len(where) >= 5 and where[0] == "storage"):
            raise UserError("the archive refers to something that is no storage; save its state dict again")
        _, kind, key, _, size = where[:5]
        kinds = _STORAGES | _OTHER_STORAGES
        if not isinstance(kind, Name) or kind.name not in kinds or (len(where) > 5 and where[5] is not None):
            raise UserError("the archive has a storage of an unsupported kind; save its state dict again")
        dtype = np.dtype(kinds[kind.name])
        if not 0 <= int(size) * dtype.itemsize <= self._file_bytes:
            raise UserError(
                f"the archive says that a storage has {size} numbers of {dtype}, more than the file's "
                f"{self._file_bytes} bytes; copy it again"
            )
        return self._make_storage(str(key), dtype, int(size))


def _make_tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> ArchiveTensor:
    if not isinstance(storage, _Storage):
        raise TypeError(f"a tensor of a {type(storage).__name__}")
    tensor = ArchiveTensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))
    if len(tensor.shape) != len(tensor.strides):
        raise UserError(f"a tensor has the shape {tensor.shape} and the strides {tensor.strides}")
    return tensor


def read_torch_archive(path: str | Path) -> Any:
    """Reads what `torch.save` wrote: dicts, lists and numbers, with an unread `ArchiveTensor` for each tensor.

    Raises:
        UserError: the file does not exist, is not such an archive, is damaged, or contains a name that is not on the
        list.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected an archive of torch.save")
    try:
        with as_user_error("not an archive of torch.save, or a damaged one; copy it again"):
            return _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _read_zip(path: Path) -> Any:
    file_bytes = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise UserError("a ZIP file, but not one of torch.save (no data.pkl)")
        root = pickles[0].removesuffix("data.pkl")
        order = _read_member(archive, members, f"{root}byteorder", file_bytes)
        content = _read_member(archive, members, pickles[0], file_bytes)

    # Once for all storages: opening reads the names of all members.
    reopen = functools.cache(lambda: zipfile.ZipFile(path))

    def make(key: str, dtype: np.dtype, size: int) -> _Storage:
        def load() -> bytes:
            return _read_member(reopen(), members, f"{root}data/{key}", file_bytes)

        return _Storage(dtype.newbyteorder(">") if order == b"big" else dtype, size, load)

    maker = _Maker(file_bytes, make)
    return read_pickle(io.BytesIO(content), maker)


def _read_member(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], name: str, file_bytes: int
) -> bytes:
    """Returns the bytes of a member, empty where it is missing. Raises UserError where it would be larger than the
    file."""
    member = members.get(name)
    if member is None:
        return b""
    if member.compress_type != zipfile.ZIP_STORED or member.file_size > file_bytes:
        raise UserError(
            f"{name} is compressed, or larger than the file; torch.save does not compress: save it again"
        )
    return archive.read(member)


def _read_legacy(path: Path) -> Any:
    """Reads the layout before PyTorch 1.6: five pickles in a row, and the storages after them."""
    storages: dict[str, _Storage] = {}

    def make(key: str, dtype: np.dtype, size: int) -> _Storage:
        return storages.setdefault(key, _Storage(dtype, size))

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        maker = _Maker(len(content), make)

        def read() -> Any:
            return read_pickle(content, maker)

        if read() != _LEGACY_MAGIC or read() != _LEGACY_PROTOCOL:
            raise UserError("not an archive of torch.save")
        if not read().get("little_endian", True):
            raise UserError("written on a big-endian machine; load it with PyTorch and save it again")
        result = read()
        for key in read():
            size = int.from_bytes(content.read(8), "little")
            storage = storages[str(key)]
            if size != storage.size:
                raise UserError(f"the storage {key!s:.20} has {size} numbers, expected {storage.size}")
            numbers = content.read(storage.num_bytes)
            storage.load = lambda numbers=numbers: numbers  # type: ignore[misc]
    return result


def find_tensors(archive: Any, entry: tuple[str, ...] = (), prefix: str = "") -> dict[str, ArchiveTensor]:
    """Returns the tensors of the state dict at ``entry``, by key without ``prefix``; empty where there is none.

    Keys without the prefix, values that are no tensors, and tensors of a dtype that no weights have (complex,
    unsigned, float8) are left out: they belong to the trainer.
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
        if isinstance(key, str)
        and key.startswith(prefix)
        and isinstance(value, ArchiveTensor)
        and value.dtype.newbyteorder("=") in WEIGHT_DTYPES
    }


def read_tensors(tensors: Mapping[str, ArchiveTensor]) -> Arrays:
    """Reads the tensors' numbers. Raises UserError where the file does not hold them, or where tensors repeat them
    too often."""
    storages = {id(tensor.storage): tensor.storage for tensor in tensors.values()}
    total, held = (sum(part.num_bytes for part in parts.values()) for parts in (tensors, storages))
    if total > _SHARED * held + _FREE_BYTES:
        raise UserError(
            f"the tensors are {total} bytes of which the file holds {held}: many are views of the same numbers; save "
            "them whole, as tensor.clone()"
        )
    arrays: Arrays = {}
    for key, tensor in tensors.items():
        try:
            arrays[key] = tensor.read()
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
    return arrays
