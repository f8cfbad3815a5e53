"""Safetensors in and out."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
import transformers

from alm_jax.errors import UserError
from alm_jax.interop.safetensors_io import (
    cast_floats,
    read_safetensors,
    read_weights,
    write_safetensors,
    write_weights,
)


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
def test_half_precision_stays_what_it_is_until_asked(tmp_path, theirs, ours):
    values = np.random.default_rng(0).normal(size=(5, 7)).astype(ours)
    path = tmp_path / "half.safetensors"
    tensors = {"w": torch.tensor(values.astype(np.float32)).to(theirs), "count": torch.tensor(3)}
    safetensors.torch.save_file(tensors, path)
    read = read_safetensors(path)
    np.testing.assert_array_equal(read["w"], values, strict=True)
    write_safetensors(tmp_path / "again.safetensors", read)
    again = safetensors.torch.load_file(tmp_path / "again.safetensors")
    assert again["w"].dtype == theirs
    assert torch.equal(again["w"], tensors["w"])

    wide = cast_floats(read, np.float32)
    np.testing.assert_array_equal(wide["w"], values.astype(np.float32), strict=True)
    assert wide["count"].dtype == np.int64


def make_model() -> transformers.BertModel:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return transformers.BertModel(config)


def test_shards_of_transformers_are_read(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "cut", max_shard_size="10KB")
    assert len(list((tmp_path / "cut").glob("model-*.safetensors"))) > 2
    whole, cut = read_weights(tmp_path / "whole"), read_weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    for key, value in whole.items():
        np.testing.assert_array_equal(cut[key], value, strict=True)


def test_transformers_reads_our_shards(tmp_path):
    model = make_model()
    arrays = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    model.config.save_pretrained(tmp_path)
    write_weights(tmp_path, arrays, shard_bytes=10_000)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert not (tmp_path / "model.safetensors").exists()
    loaded = transformers.BertModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in model.state_dict().items())
    assert read_weights(tmp_path).keys() == arrays.keys()

    index_file = tmp_path / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())
    key = list(index["weight_map"])[-1]
    index["weight_map"][key] = "../elsewhere.safetensors"
    index_file.write_text(json.dumps(index))
    with pytest.raises(UserError, match="files of its own folder"):
        read_weights(tmp_path)
    del index["weight_map"][key]
    index_file.write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"differ in.*{key}"):
        read_weights(tmp_path)
    shards[1].unlink()
    index_file.write_text(json.dumps({"weight_map": {"w": shards[1].name}}))
    with pytest.raises(UserError, match=f"{shards[1].name}: no such file"):
        read_weights(tmp_path)
    index_file.write_text("{}")
    with pytest.raises(UserError, match="not an index"):
        read_weights(tmp_path)


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


def test_a_dtype_of_no_weights_is_refused_by_name(tmp_path):
    safetensors.torch.save_file({"w": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: w has the dtype F8_E4M3"):
        read_safetensors(tmp_path / "model.safetensors")


@pytest.mark.parametrize("places", [[], {"w": 3}, {"w": None}, {"w": "../x"}, {}, "x"])
def test_an_index_that_is_none_is_refused(tmp_path, places):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UserError, match=r"index\.json"):
        read_weights(tmp_path)
