"""Safetensors in and out."""

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from alm_jax.errors import UserError
from alm_jax.interop.safetensors_io import read_safetensors, write_safetensors


def test_round_trip_is_exact_and_pytorch_reads_it(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "matrix": rng.normal(size=(3, 4)).astype(np.float32).T,  # not contiguous
        "scalar": np.float32(2.5).reshape(()),
        "index": np.arange(6).reshape(2, 3),
        "nan": np.array([np.nan, -0.0, np.inf], np.float32),
    }
    path = tmp_path / "model.safetensors"
    write_safetensors(path, arrays)
    for name, read in (("numpy", read_safetensors(path)), ("torch", safetensors.torch.load_file(path))):
        assert read.keys() == arrays.keys()
        for key, value in arrays.items():
            actual = np.asarray(read[key])
            assert (actual.dtype, actual.shape) == (value.dtype, value.shape), (name, key)
            np.testing.assert_array_equal(actual, value)
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("theirs", "ours"), [(torch.bfloat16, ml_dtypes.bfloat16), (torch.float16, np.float16)]
)
def test_half_precision_is_widened(tmp_path, theirs, ours):
    values = np.random.default_rng(0).normal(size=(5, 7)).astype(ours)
    path = tmp_path / "half.safetensors"
    safetensors.torch.save_file({"w": torch.tensor(values.astype(np.float32)).to(theirs)}, path)
    read = read_safetensors(path)["w"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values.astype(np.float32))


@pytest.mark.parametrize("damage", ["missing", "truncated", "text"])
def test_unreadable_files_are_refused(tmp_path, damage):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"w": np.ones((100, 100), np.float32)})
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        read_safetensors(path)
