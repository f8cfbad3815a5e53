"""`alm import`, `alm export` of what it wrote, `alm zoo`, and `from_pretrained` of every kind of model."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import alm_jax
from alm_jax.cli.main import dispatch
from alm_jax.encoders.text import whisper_decoder
from alm_jax.encoders.text.bert import NANO
from alm_jax.errors import UserError
from alm_jax.interop.bert import write_bert_config
from alm_jax.interop.folder import import_model
from alm_jax.interop.format import variables_to_arrays
from alm_jax.interop.parity import ParityError
from alm_jax.interop.safetensors_io import read_weights
from alm_jax.interop.whisper import WHISPER_ARCHIVE
from alm_jax.run.model_folder import load_model_folder
from alm_jax.run.pretrained import PretrainedEncoder

CONFIG = dataclasses.replace(NANO, positions="bert", num_token_types=2, pad_id=0, kernel_init="normal")


@pytest.fixture(scope="module")
def model() -> transformers.BertModel:
    return transformers.BertModel(transformers.AutoConfig.for_model(**write_bert_config(CONFIG))).eval()


@pytest.fixture(scope="module")
def source(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    model.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


@pytest.fixture(scope="module")
def imported(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported") / "bert"
    assert dispatch(["import", str(source), "--out", str(folder)]) == 0
    return folder


def test_what_was_imported_is_exported_bit_for_bit(source, imported, tmp_path, capsys):
    assert sorted(path.name for path in imported.iterdir()) == [
        "alm_config.json",
        "model.safetensors",
        "original",
    ]
    assert json.loads((imported / "alm_config.json").read_text())["format"] == "bert"
    assert dispatch(["export", str(imported), "--format", "transformers", "--out", str(tmp_path)]) == 0
    assert "config.json" in capsys.readouterr().out
    saved, written = read_weights(source), read_weights(tmp_path)
    assert saved.keys() == written.keys()
    for key, value in saved.items():
        np.testing.assert_array_equal(written[key], value, strict=True)
    for name in ("config.json", "README.md"):
        assert (tmp_path / name).read_text().split() == (source / name).read_text().split()


def test_an_archive_becomes_the_class_that_holds_it(tmp_path, capsys):
    """OpenAI's archive of a Whisper goes out as transformers' class, with the same numbers."""
    config = whisper_decoder.VARIANTS["nano"]
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), WHISPER_ARCHIVE.abstract(config)
    )
    arrays = variables_to_arrays(WHISPER_ARCHIVE, config, variables)
    state = {"dims": {}, "model_state_dict": {key: torch.tensor(array) for key, array in arrays.items()}}
    torch.save(state, tmp_path / "nano.pt")
    steps = (["import", str(tmp_path / "nano.pt"), "--out", str(tmp_path / "ours")],)
    steps += (["export", str(tmp_path / "ours"), "--out", str(tmp_path / "theirs")],)
    assert [dispatch(step) for step in steps] == [0, 0]
    back = import_model(tmp_path / "theirs")
    again = variables_to_arrays(WHISPER_ARCHIVE, back.config, back.variables)
    assert again.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(again[key], array, strict=True, err_msg=key)


def test_a_dtype_is_asked_for(source, tmp_path, capsys):
    assert dispatch(["import", str(source), "--out", str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    assert "numbers in bfloat16" in capsys.readouterr().out
    assert {str(array.dtype) for array in read_weights(tmp_path / "half").values()} == {"bfloat16"}


def test_a_folder_in_use_and_a_strange_format_are_mistakes(source, imported, tmp_path, capsys):
    assert dispatch(["import", str(source), "--out", str(imported)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert dispatch(["import", str(source), "--out", str(tmp_path / "a"), "--format", "brt"]) == 2
    assert "no format 'brt'" in capsys.readouterr().err
    assert dispatch(["import", str(source), "--out", str(tmp_path / "a"), "--format", "gpt2"]) == 2
    assert not (tmp_path / "a").exists()


def test_an_imported_folder_whose_parts_differ_is_refused(imported, tmp_path):
    copy = shutil.copytree(imported, tmp_path / "copy")
    text = (copy / "alm_config.json").read_text()
    (copy / "alm_config.json").write_text(text.replace('"num_layers": 2', '"num_layers": 3'))
    with pytest.raises(UserError, match=r"differ in .* arrays"):
        load_model_folder(copy)
    (copy / "alm_config.json").write_text(text.replace('"pad_id"', '"padding_id"'))
    with pytest.raises(UserError, match=r"unknown fields \['padding_id'\]"):
        load_model_folder(copy)
    (copy / "alm_config.json").write_text("{}")
    with pytest.raises(UserError, match="format is missing, expected"):
        load_model_folder(copy)


def test_an_encoder_in_three_lines_is_the_original(source, imported, model):
    ids = np.random.default_rng(0).integers(5, CONFIG.vocab_size, (2, 12))
    mask = np.arange(12)[None, :] < np.array([[12], [5]])
    with torch.no_grad():
        theirs = model(torch.tensor(ids), attention_mask=torch.tensor(mask).long()).pooler_output.numpy()
    for folder in (source, imported):
        ours = alm_jax.from_pretrained(folder)
        assert isinstance(ours, PretrainedEncoder)
        assert ours.family.name == "bert"
        actual = ours(jnp.asarray(ids, jnp.int32), jnp.asarray(mask), train=False)
        np.testing.assert_allclose(actual, theirs, atol=1e-5)


def test_the_zoo_lists_families_and_what_they_read(monkeypatch, capsys, tmp_path):
    from alm_jax.interop import catalogue_table as zoo

    own = {name: zoo.FAMILIES[name] for name in ("ast", "bert")}
    monkeypatch.setattr(zoo, "FAMILIES", own)
    assert dispatch(["zoo", "--json", str(tmp_path / "zoo.json")]) == 0
    assert "bert_base" in capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads((tmp_path / "zoo.json").read_text())}
    # BertModel's published 109,482,240, and RobertaModel's 124,645,632.
    assert rows["bert_base"]["parameters"] == 109_482_240
    assert rows["roberta_base"]["parameters"] == 124_645_632
    assert {"bert", "roberta"} <= set(rows["bert_base"]["writes"])
    assert dispatch(["zoo", "--out", str(tmp_path / "x.md")]) == 2


def test_the_table_of_parity_fails_where_a_model_is_off(monkeypatch, capsys, tmp_path, real_data_dir):
    from alm_jax.interop import catalogue_table as zoo

    monkeypatch.setattr(zoo, "PARITY", [case for case in zoo.PARITY if case.layout.name == "roberta"][:1])
    command = ["zoo", "--parity", "--data", str(real_data_dir), "--out", str(tmp_path / "parity.md")]
    assert dispatch([*command, "--json", "-"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["versions"]["torch"] == torch.__version__
    assert table["rows"][0]["float64 relative"] < 1e-8 < table["rows"][0]["float32 relative"] < 1e-4
    assert "`transformers.RobertaModel`" in (tmp_path / "parity.md").read_text()

    monkeypatch.setattr(zoo, "measure", lambda *_, dtype: ParityError(absolute=1.0, relative=1e-6))
    assert dispatch(command) == 1
    assert "not equal to their oracles: roberta" in capsys.readouterr().err
