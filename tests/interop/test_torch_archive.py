"""Archives of `torch.save`: the same numbers as PyTorch reads, and nothing is run."""

import argparse
import collections
import io
import os
import pathlib
import zipfile

import numpy as np
import pytest
import torch

from alm_jax.errors import UserError
from alm_jax.interop.torch_archive import (
    ArchiveTensor,
    Opaque,
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
        ("collections", "Counter"),
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
