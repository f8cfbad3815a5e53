"""Archives of `torch.save`: the same numbers as PyTorch reads, and nothing is run."""

import argparse
import collections
import io
import os
import pathlib
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from alm_jax.errors import UserError
from alm_jax.interop.pickled import Opaque
from alm_jax.interop.torch_archive import (
    ArchiveTensor,
    find_tensors,
    read_tensors,
    read_torch_archive,
)


def make_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=generator)
    return collections.OrderedDict(
        matrix=base,
        transposed=base.t(),
        part=base[2:4, 1:7:2],
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
        double=torch.randn(3, generator=generator, dtype=torch.float64),
        half=torch.randn(3, generator=generator).half(),
        bfloat=torch.randn(3, generator=generator).bfloat16(),
        count=torch.tensor(7),
        small=torch.tensor([-3, 4], dtype=torch.int16),
        truth=torch.tensor([True, False]),
        parameter=torch.nn.Parameter(torch.randn(2, 2, generator=generator)),
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_are_those_that_were_saved(tmp_path, zipped):
    state = make_state()
    content = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}, "name": "tower"}
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    archive = read_torch_archive(tmp_path / "model.pt")
    assert (archive["epoch"], archive["name"]) == (3, "tower")
    arrays = read_tensors(find_tensors(archive, ("state_dict",), "module."))
    assert arrays.keys() == state.keys()
    for key, tensor in state.items():
        tensor = tensor.detach()
        assert str(arrays[key].dtype) == str(tensor.dtype).removeprefix("torch.")
        wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        np.testing.assert_array_equal(arrays[key].astype(wide.numpy().dtype), wide.numpy(), err_msg=key)
        assert arrays[key].flags.writeable
    assert find_tensors(archive, ("model",)) == {}
    assert find_tensors(archive, ("epoch",)) == {}


def test_a_modules_state_and_its_optimizers_are_read(tmp_path):
    """Whole checkpoints: metadata of a state dict, an optimizer's state, numbers of NumPy, the trainer's options."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=1e-3, out=pathlib.PurePosixPath("runs")),
        "best": np.float64(0.5),
        "losses": np.ones(3),
        "seen": collections.defaultdict(list, {"a": [1]}),
        "device": torch.device("cpu"),
        "shape": torch.Size([1, 2]),
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    archive = read_torch_archive(tmp_path / "checkpoint.pth")
    arrays = read_tensors(find_tensors(archive, ("model",)))
    for key, tensor in model.state_dict().items():
        np.testing.assert_array_equal(arrays[key], tensor.numpy(), strict=True)
    assert isinstance(archive["args"], Opaque)
    assert not isinstance(archive["args"], argparse.Namespace)
    assert archive["seen"] == {"a": [1]}
    assert isinstance(archive["optimizer"]["state"][0]["exp_avg"], ArchiveTensor)


class Runs:
    """Unpickled, it runs a command."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def attacks(marker) -> list:
    command = f"touch {marker}"
    return [
        Runs(os.system, command),
        Runs(eval, f"__import__('os').system({command!r})"),
    ]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("number", range(2))
def test_a_malicious_pickle_is_refused_and_nothing_runs(tmp_path, zipped, number):
    marker, path = tmp_path / "ran", tmp_path / "model.pt"
    content = {"weight": torch.ones(2), "extra": attacks(marker)[number]}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="which no weights are made of; nothing of it was run"):
        read_torch_archive(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("argparse", "_sys.modules"),  # through what an allowed module imports
        ("numpy", "os.system"),
        ("pathlib", "os.system"),
        ("torch", "load"),
        ("torch._utils", "_import_dotted_name"),
        ("builtins", "eval"),
        ("collections", "namedtuple"),
        ("functools", "partial"),
        ("argparsepretender", "Namespace"),
    ],
)
def test_names_off_the_list_are_refused(tmp_path, module, name):
    code = (
        b"\x80\x04\x8c"
        + bytes([len(module)])
        + module.encode()
        + b"\x8c"
        + bytes([len(name)])
        + name.encode()
    )
    write_zip(tmp_path / "model.pt", code + b"\x93)R.")
    with pytest.raises(UserError, match="asks for"):
        read_torch_archive(tmp_path / "model.pt")


def test_what_is_allowed_is_not_imported(tmp_path):
    """numpy.testing's name stands for nothing, though NumPy has it."""
    write_zip(tmp_path / "model.pt", b"\x80\x04\x8c\x05numpy\x8c\x06memmap\x93\x8c\x0b/etc/passwd\x85R.")
    assert isinstance(read_torch_archive(tmp_path / "model.pt"), Opaque)


def write_zip(path, code: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", code)


def test_a_tensor_outside_of_its_storage_is_refused(tmp_path):
    """Shape and strides that would read beyond the file's numbers."""
    torch.save({"w": torch.arange(6.0).reshape(2, 3)}, tmp_path / "model.pt")
    tensor = read_torch_archive(tmp_path / "model.pt")["w"]
    for changed in (
        {"shape": (3, 3)},
        {"offset": 1},
        {"strides": (4, 1)},
        {"offset": -1},
        {"strides": (-3, 1)},
    ):
        wrong = ArchiveTensor(**{**vars(tensor), **changed})
        with pytest.raises(UserError, match="outside of its storage"):
            wrong.read()
    np.testing.assert_array_equal(tensor.read(), np.arange(6.0, dtype=np.float32).reshape(2, 3))


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_archives_are_refused(tmp_path, zipped):
    path = tmp_path / "model.pt"
    torch.save(make_state(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    with pytest.raises(UserError, match="no such file"):
        read_torch_archive(tmp_path / "other.pt")
    for content in (whole[: len(whole) // 2], b"version https://git-lfs.github.com/spec/v1\n", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"model\.pt"):
            read_tensors(find_tensors(read_torch_archive(path)))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    path.write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match=r"no data\.pkl"):
        read_torch_archive(path)


def test_what_pytorch_takes_beside_the_weights_is_skipped(tmp_path):
    """All of it passes `torch.load(weights_only=True)`; none of it is a weight of ours."""
    state = {
        "weight": torch.arange(3.0),
        "counter": collections.Counter("aab"),
        "dtype": torch.float16,
        "complex": 1 + 2j,
        "complexes": torch.ones(2, dtype=torch.complex64),
        "unsigned": torch.ones(2, dtype=torch.uint16),
        "eighths": torch.ones(2).to(torch.float8_e4m3fn),
        "sparse": torch.eye(2).to_sparse(),
        "set": {1, 2},
        "bytes": bytearray(b"ab"),
    }
    tied = torch.nn.Parameter(torch.ones(2))
    tied.note = "kept by PyTorch"
    state |= {"tied": tied}
    torch.save(state, tmp_path / "model.pt")
    torch.load(tmp_path / "model.pt", weights_only=True)
    archive = read_torch_archive(tmp_path / "model.pt")
    assert archive["counter"] == {"a": 2, "b": 1}
    arrays = read_tensors(find_tensors(archive))
    assert sorted(arrays) == ["tied", "weight"]
    np.testing.assert_array_equal(archive["unsigned"].read(), np.ones(2, np.uint16), strict=True)
    assert str(archive["eighths"].read().dtype) == "float8_e4m3fn"


def zipped_pickle(path, code: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", code)
        archive.writestr("archive/data/0", bytes(400))


def peak_of(function) -> int:
    """Bytes that Python's allocator held at most."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refused(path, match: str) -> None:
    def read() -> None:
        with pytest.raises(UserError, match=match):
            read_tensors(find_tensors(read_torch_archive(path)))

    assert peak_of(read) < 20_000_000


def test_a_file_is_believed_no_more_than_its_size(tmp_path):
    """A few bytes that claim gigabytes: of the memo, of a member, of a storage, of a tensor."""
    path = tmp_path / "model.pt"
    path.write_bytes(b"\x80\x02Nr\x00\x00\x00\x10.")  # LONG_BINPUT 2^28
    refused(path, "remembers a value under 268435456")
    zipped_pickle(path, b"\x80\x02Nr\x00\x00\x00\x10.")
    refused(path, "remembers a value under 268435456")
    zipped_pickle(path, b"\x80\x02" + bytes(50_000_000) + b".", zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    refused(path, "is compressed")
    zipped_pickle(path, b"\x80\x02" + b"X\xff\xff\xff\x7f" + b"a.")
    refused(path, "damaged")
    torch.save({"w": torch.zeros(1)}, path)
    tensor = read_torch_archive(path)["w"]
    for changed in (
        {"shape": (1 << 20, 1 << 11), "strides": (0, 0)},
        {"shape": (-1,)},
        {"shape": (1 << 40, 0, 5), "strides": (1, 1, 1), "offset": -3},
    ):
        wrong = ArchiveTensor(
            **{"offset": 0, **vars(tensor), **changed, "strides": (0,) * len(changed["shape"])}
        )
        if 0 in wrong.shape:
            assert wrong.read().size == 0
            continue
        with pytest.raises(UserError, match="its storage"):
            wrong.read()
    many = {f"w{i}": torch.zeros(1 << 16) for i in range(2)}
    torch.save(many | {f"v{i}": many["w0"] for i in range(1000)}, path)
    refused(path, "many are views of the same numbers")


def test_a_storage_is_no_larger_than_the_file(tmp_path):
    code = pickle.dumps({"w": 1}, 2)
    storage = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
        b"X\x03\x00\x00\x00cpuJ\xff\xff\xff\x7ftQK\x00))tR."
    )
    assert code[:2] == b"\x80\x02"
    zipped_pickle(tmp_path / "model.pt", code[:2] + storage)
    refused(tmp_path / "model.pt", "more than the file")
