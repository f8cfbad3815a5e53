"""Models of others by folder, archive and Hub id, and what is refused."""

import dataclasses
import json
import os
import shutil

import huggingface_hub
import jax
import numpy as np
import pytest
import torch
import transformers

from alm_jax.encoders.audio.ast import AstConfig
from alm_jax.encoders.text.bert import NANO
from alm_jax.errors import UserError
from alm_jax.interop.ast import AST_ARCHIVE
from alm_jax.interop.bert import BERT, write_bert_config
from alm_jax.interop.folder import export_model, import_model
from alm_jax.interop.format import variables_to_arrays
from alm_jax.interop.model_files import read_fields
from alm_jax.interop.safetensors_io import read_weights

CONFIG = dataclasses.replace(NANO, positions="bert", num_token_types=2, pad_id=0, kernel_init="normal")


@pytest.fixture(scope="module")
def model() -> transformers.BertModel:
    return transformers.BertModel(transformers.AutoConfig.for_model(**write_bert_config(CONFIG)))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    model.save_pretrained(folder, max_shard_size="200KB")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def equal(a, b) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), a, b)


def test_a_folder_comes_in_and_goes_out_bit_for_bit(folder, tmp_path):
    found = import_model(folder)
    assert (found.layout, found.config) == (BERT, CONFIG)
    assert sorted(found.files) == ["config.json", "tokenizer.json"]
    original = read_fields(folder)
    export_model(tmp_path / "out", found.config, found.variables, found.layout, original)
    saved, written = read_weights(folder), read_weights(tmp_path / "out")
    assert saved.keys() == written.keys()
    for key, value in saved.items():
        np.testing.assert_array_equal(written[key], value, strict=True)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == original
    transformers.BertModel.from_pretrained(tmp_path / "out")


def test_a_dtype_is_changed_when_asked_and_said(folder, tmp_path):
    found = import_model(folder, dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found.variables)} == {"bfloat16"}
    export_model(tmp_path, found.config, found.variables, found.layout, read_fields(folder))
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert transformers.BertModel.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    equal(import_model(tmp_path).variables, found.variables)


def test_another_config_is_written_anew(folder, tmp_path):
    """A config.json that no longer says the model is not kept."""
    found = import_model(folder)
    export_model(
        tmp_path,
        dataclasses.replace(found.config, layer_norm_eps=1e-3),
        found.variables,
        BERT,
        read_fields(folder),
    )
    assert import_model(tmp_path).config.layer_norm_eps == 1e-3


def test_pickled_weights_are_read_where_there_are_no_others(model, copy, folder):
    for path in copy.glob("*.safetensors*"):
        path.unlink()
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    equal(import_model(copy).variables, import_model(folder).variables)


def test_what_is_not_a_known_model_is_refused(copy, tmp_path):
    fields = json.loads((copy / "config.json").read_text())
    with pytest.raises(UserError, match="no such folder or file"):
        import_model(tmp_path / "nowhere" / "at" / "all")
    for changed, match in (
        ({"architectures": ["PerceiverModel"]}, "'PerceiverModel' is no class that alm_jax reads"),
        ({"architectures": None}, "expected one; say which format"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"num_hidden_layers": 1}, r"problems\):\n  unknown encoder.layer.1"),
        ({"intermediate_size": 100}, "has shape"),
        ({"num_hidden_layers": 3}, r"missing encoder\.layer\.2"),
    ):
        (copy / "config.json").write_text(json.dumps(fields | changed))
        with pytest.raises(UserError, match=match):
            import_model(copy)
    # The class's name is missing and the format is said.
    (copy / "config.json").write_text(json.dumps(fields | {"architectures": None}))
    assert import_model(copy, layout=BERT).config == CONFIG
    (copy / "config.json").write_text("[]")
    with pytest.raises(UserError, match="expected a JSON object"):
        import_model(copy)


def test_an_archive_is_known_by_its_keys(tmp_path):
    """The authors' layout of an AST, as DataParallel saves it."""
    config = AstConfig(
        num_frames=128,
        num_mels=128,
        width=64,
        num_layers=1,
        num_heads=1,
        mlp_dim=32,
        num_classes=5,
        layer_norm_eps=1e-6,
        head_norm_eps=1e-5,
    )
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), AST_ARCHIVE.abstract(config)
    )
    arrays = variables_to_arrays(AST_ARCHIVE, config, variables)
    torch.save({f"module.{key}": torch.tensor(a) for key, a in arrays.items()}, tmp_path / "audioset.pth")
    found = import_model(tmp_path / "audioset.pth")
    assert (found.layout, found.config) == (AST_ARCHIVE, config)
    equal(found.variables, variables)
    with pytest.raises(UserError, match="can be read and not written"):
        export_model(tmp_path / "out", found.config, found.variables, found.layout)
    torch.save({"w": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="the state dict of no model that alm_jax knows"):
        import_model(tmp_path / "other.pth")
    with pytest.raises(UserError, match="bert is one of folders"):
        import_model(tmp_path / "other.pth", layout=BERT)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "README.md", "model.safetensors.index.json"]
)
@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
def test_only_regular_files_of_the_folder_are_read(copy, tmp_path, name, kind):
    """Nothing outside of a model's folder is read or copied, and nothing waits for a pipe."""
    (tmp_path / "secret").write_text("{}")
    (copy / name).unlink(missing_ok=True)
    match kind:
        case "link":
            (copy / name).symlink_to(tmp_path / "secret")
        case "dangling link":
            (copy / name).symlink_to(tmp_path / "nowhere")
        case "pipe":
            os.mkfifo(copy / name)
        case "folder":
            (copy / name).mkdir()
    with pytest.raises(UserError, match=f"{name}: (leads to|a link to|no regular file)"):
        import_model(copy)


def test_links_within_a_folder_are_followed(copy, folder):
    (copy / "config.json").rename(copy / "real.json")
    (copy / "config.json").symlink_to("real.json")
    equal(import_model(copy).variables, import_model(folder).variables)


def test_a_config_of_endless_layers_is_bounded_by_the_file(copy):
    fields = json.loads((copy / "config.json").read_text())
    for changed, match in (
        ({"num_hidden_layers": 10**9}, "asks for more than [0-9]+ arrays, and the file has"),
        ({"num_hidden_layers": 10**10}, "num_hidden_layers is 10000000000, expected a whole number"),
        ({"max_position_embeddings": 2**31 - 1}, "position_embeddings.weight has shape"),
        ({"num_attention_heads": "4"}, "num_attention_heads is '4', expected a whole number"),
        ({"num_attention_heads": 3}, "num_attention_heads is 3, expected a divisor of 128"),
        ({"layer_norm_eps": None}, "layer_norm_eps is null, expected a number above 0"),
        ({"architectures": "BertModel"}, "architectures is 'BertModel', expected a list"),
        ({"hidden_size": {"a": 1}}, "hidden_size is an object of 1 fields, expected"),
    ):
        (copy / "config.json").write_text(json.dumps(fields | changed))
        with pytest.raises(UserError, match=match) as raised:
            import_model(copy)
        assert str(copy) in str(raised.value)
    (copy / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested too deeply"):
        import_model(copy)


def test_a_hub_id_is_found_in_the_hubs_cache(folder, tmp_path, monkeypatch):
    """What `hf download` leaves, read without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--owner--tiny-bert"
    shutil.copytree(folder, cached / "snapshots" / commit)
    # As the Hub's cache has it: links out of the snapshot, to the blobs of the same model.
    (cached / "blobs").mkdir()
    (cached / "snapshots" / commit / "config.json").rename(cached / "blobs" / "a1b2")
    (cached / "snapshots" / commit / "config.json").symlink_to("../../blobs/a1b2")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    equal(import_model("owner/tiny-bert").variables, import_model(folder).variables)
    with pytest.raises(UserError, match="owner/other-bert: no such folder here, not in the Hub's cache"):
        import_model("owner/other-bert")
