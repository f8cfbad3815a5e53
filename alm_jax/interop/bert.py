"""BERT and RoBERTa as `transformers.BertModel` and `RobertaModel` save them."""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from alm_jax.encoders import family
from alm_jax.encoders.text.bert import FAMILY, NANO, BertConfig
from alm_jax.interop.entry import Entry, Path, embedding, fused_qkv, linear, norm
from alm_jax.interop.fields import Fields
from alm_jax.interop.format import Format
from alm_jax.interop.parity import Parity, RealInputs
from alm_jax.interop.safetensors_io import Arrays
from alm_jax.interop.shapes import published_heads


def bert_entries(config: BertConfig, *, prefix: str = "", path: Path = ("params",)) -> Iterator[Entry]:
    """Every key of a BertModel; ``prefix`` and ``path`` place it inside a larger model."""
    width = config.width
    for table, name, rows in (
        ("word_embeddings", "token_embed", config.vocab_size),
        ("position_embeddings", "position_embed", config.max_positions),
        ("token_type_embeddings", "type_embed", config.num_token_types),
    ):
        yield from embedding(f"{prefix}embeddings.{table}", (*path, name), rows, width)
    yield from norm(f"{prefix}embeddings.LayerNorm", (*path, "embed_norm"), width)
    blocks = (*path, "blocks")
    for i in range(config.num_layers):
        theirs = f"{prefix}encoder.layer.{i}"
        query, key, value = (f"{theirs}.attention.self.{name}" for name in ("query", "key", "value"))
        yield from fused_qkv((query, key, value), (*blocks, "attention", "qkv"), width, width, (i,))
        yield from linear(
            f"{theirs}.attention.output.dense", (*blocks, "attention", "out"), width, width, (i,)
        )
        yield from norm(f"{theirs}.attention.output.LayerNorm", (*blocks, "attention_norm"), width, (i,))
        yield from linear(f"{theirs}.intermediate.dense", (*blocks, "mlp", "up"), width, config.mlp_dim, (i,))
        yield from linear(f"{theirs}.output.dense", (*blocks, "mlp", "down"), config.mlp_dim, width, (i,))
        yield from norm(f"{theirs}.output.LayerNorm", (*blocks, "mlp_norm"), width, (i,))
    if config.pooling == "pooler":
        yield from linear(f"{prefix}pooler.dense", (*path, "pooler"), width, width)


POSITION_IDS = "embeddings.position_ids"


def position_ids(config: BertConfig) -> Arrays:
    """0, 1, 2, ..., which early releases of transformers wrote into every file and later ones leave out."""
    return {POSITION_IDS: np.arange(config.max_positions)[None, :]}


def infer_bert_config(
    shapes: Mapping[str, tuple[int, ...]], like: BertConfig, *, prefix: str = ""
) -> BertConfig:
    """The config of an archive's BERT from its shapes; what they do not show is as in ``like``, heads of 64."""
    vocab_size, width = shapes[f"{prefix}embeddings.word_embeddings.weight"]
    layers = re.compile(rf"{re.escape(prefix)}encoder\.layer\.(\d+)\.")
    return dataclasses.replace(
        like,
        vocab_size=vocab_size,
        width=width,
        num_layers=1 + max(int(found[1]) for key in shapes if (found := layers.match(key))),
        num_heads=published_heads(width),
        mlp_dim=shapes[f"{prefix}encoder.layer.0.intermediate.dense.weight"][0],
        max_positions=shapes[f"{prefix}embeddings.position_embeddings.weight"][0],
        num_token_types=shapes[f"{prefix}embeddings.token_type_embeddings.weight"][0],
    )


def read_bert_config(fields: Mapping[str, Any]) -> BertConfig:
    """config.json of a BertModel or RobertaModel, absent fields at transformers' defaults."""
    fields = Fields.of(fields)
    is_roberta = fields.word("model_type", "bert") == "roberta"
    fields.only({"hidden_act": "gelu", "position_embedding_type": "absolute"}, "our BERT")
    width = fields.size("hidden_size", 768)
    return BertConfig(
        vocab_size=fields.size("vocab_size", 50265 if is_roberta else 30522),
        width=width,
        num_layers=fields.size("num_hidden_layers", 12),
        num_heads=fields.divisor("num_attention_heads", 12, of=width),
        mlp_dim=fields.size("intermediate_size", 3072),
        max_positions=fields.size("max_position_embeddings", 512),
        positions="roberta" if is_roberta else "bert",
        num_token_types=fields.size("type_vocab_size", 2),
        layer_norm_eps=fields.number("layer_norm_eps", 1e-12, above=0.0),
        dropout=fields.rate("hidden_dropout_prob", 0.1),
        pad_id=fields.token_id("pad_token_id", 1 if is_roberta else 0),
    )


def write_bert_config(config: BertConfig) -> dict[str, Any]:
    """config.json of the model that computes what ``config`` computes."""
    return {
        "model_type": "roberta" if config.positions == "roberta" else "bert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.num_token_types,
        "layer_norm_eps": config.layer_norm_eps,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "pad_token_id": config.pad_id,
        "hidden_act": "gelu",
    }


def _format(name: str, architecture: str) -> Format:
    return Format(
        name=name,
        config_type=BertConfig,
        abstract=functools.partial(family.abstract, FAMILY),
        entries=bert_entries,
        buffers=position_ids,
        optional=lambda _: frozenset({POSITION_IDS}),
        architectures=(architecture,),
        read_config=read_bert_config,
        write_config=write_bert_config,
    )


BERT = _format("bert", "BertModel")
ROBERTA = _format("roberta", "RobertaModel")
FORMATS = (BERT, ROBERTA)


def bert_parity(layout: Format, config: BertConfig) -> Parity:
    """Compares a model of ours with transformers': the texts' vectors by ``config.pooling``."""

    def build(config: BertConfig) -> Any:
        import transformers

        fields = write_bert_config(config) | {"attn_implementation": "eager"}
        return getattr(transformers, layout.architectures[0])(
            transformers.AutoConfig.for_model(**fields)
        ).eval()

    def inputs(config: BertConfig, real: RealInputs) -> dict[str, np.ndarray]:
        ids, mask = real.token_ids(config.vocab_size, 48)
        return {"ids": np.where(mask, ids, config.pad_id), "mask": mask}

    def theirs(module: Any, given: dict[str, Any]) -> Any:
        outputs = module(given["ids"], attention_mask=given["mask"].long())
        if config.pooling == "pooler":
            return outputs.pooler_output
        mask = given["mask"][:, :, None]
        return (outputs.last_hidden_state * mask).sum(1) / mask.sum(1)

    return Parity(
        name=f"{layout.name}, nano",
        layout=layout,
        config=config,
        oracle=build,
        oracle_name=f"transformers.{layout.architectures[0]}",
        inputs=inputs,
        ours=lambda config, variables, given, dtype: family.apply(
            FAMILY, config, variables, given["ids"], given["mask"], dtype=dtype
        ),
        theirs=theirs,
    )


PARITY = (
    bert_parity(BERT, dataclasses.replace(NANO, positions="bert", num_token_types=2, pad_id=0)),
    bert_parity(ROBERTA, NANO),
)
