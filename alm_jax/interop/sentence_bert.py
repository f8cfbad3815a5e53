"""Sentence encoders of the sentence-transformers library: a BertModel's folder and a few files beside it.

Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084. ``modules.json`` lists the stages of the encoder; ours
computes the mean of the real tokens' last states, with or without the norm that makes it a unit vector. The
BertModel's pooler is in the file and never used: it is not read, and not written.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alm_jax.encoders import family
from alm_jax.encoders.text.bert import FAMILY, NANO, BertConfig
from alm_jax.errors import UserError
from alm_jax.interop.bert import (
    POSITION_IDS,
    bert_entries,
    bert_parity,
    position_ids,
    read_bert_config,
    write_bert_config,
)
from alm_jax.interop.fields import Fields, read_json, read_object, show
from alm_jax.interop.format import Format, arrays_to_variables
from alm_jax.interop.model_files import CONFIG, need_file
from alm_jax.interop.safetensors_io import cast_floats, read_weights
from alm_jax.types import PyTree

_KINDS = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
_MEAN = "pooling_mode_mean_tokens"


def _read_config(fields: Mapping[str, Any]) -> BertConfig:
    return dataclasses.replace(read_bert_config(fields), pooling="mean")


SENTENCE_BERT = Format(
    name="sentence_bert",
    config_type=BertConfig,
    abstract=functools.partial(family.abstract, FAMILY),
    entries=bert_entries,
    buffers=position_ids,
    optional=lambda _: frozenset({POSITION_IDS}),
    architectures=("BertModel",),
    read_config=_read_config,
    write_config=write_bert_config,
    ignored=(r"pooler\.dense\.(weight|bias)",),
)
FORMATS = (SENTENCE_BERT,)
PARITY = (
    bert_parity(
        SENTENCE_BERT,
        dataclasses.replace(NANO, positions="bert", num_token_types=2, pad_id=0, pooling="mean"),
    ),
)


def import_sentence_bert(folder: str | Path) -> tuple[BertConfig, PyTree, Path]:
    """Reads a sentence encoder's folder: config, variables (NumPy, float32) and path of tokenizer.json.

    The model's vectors are the mean over tokens; cosine similarities of them are the published ones, whether or not
    the folder's last module makes them unit vectors.

    Raises:
        UserError: a file is missing or unreadable, or the folder is no BERT with the mean over tokens.
    """
    folder = Path(folder)
    what = "the folder of a sentence encoder"
    modules_file = need_file(folder, "modules.json", what)
    listed = read_json(modules_file)
    if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
        raise UserError(f"{modules_file}: holds {show(listed)}, expected a list of objects")
    modules = [Fields(str(modules_file), module, f"{i}.") for i, module in enumerate(listed)]
    kinds = [module.word("type", "").rpartition(".")[2] for module in modules]
    if kinds not in _KINDS:
        raise UserError(
            f"{modules_file} lists {show(kinds)}; a sentence encoder of ours is {' or '.join(map(str, _KINDS))}"
        )
    transformer, pooling_path = (module.word("path", "") for module in modules[:2])
    pooling_file = need_file(folder, f"{pooling_path}/{CONFIG}", what)
    pooling = read_object(pooling_file)
    modes = sorted(key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True)
    if modes != [_MEAN]:
        raise UserError(
            f"{pooling_file} has {show(modes) if modes else 'no pooling mode'}; our sentence encoder has {_MEAN} alone"
        )
    # Below, so that a path that leads out of the folder is refused by `need_file`.
    config_file = need_file(folder, f"{transformer}/{CONFIG}" if transformer else CONFIG, what)
    fields = read_object(config_file)
    fields.word("model_type", "", among=("bert",))
    root = config_file.parent
    tokenizer_path = need_file(root, "tokenizer.json", "the tokenizer of a sentence encoder")
    config = _read_config(fields)
    return (
        config,
        arrays_to_variables(SENTENCE_BERT, config, cast_floats(read_weights(root), np.float32)),
        tokenizer_path,
    )
