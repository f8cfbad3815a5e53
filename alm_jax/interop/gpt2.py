"""GPT-2 as `transformers.GPT2LMHeadModel` and `GPT2Model` save it; its linear layers lie on disk as ours, [in, out]."""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from alm_jax.encoders import family
from alm_jax.encoders.text.gpt2 import FAMILY, NANO, Gpt2Config
from alm_jax.errors import UserError
from alm_jax.interop.entry import Entry, Index, Path, embedding, norm
from alm_jax.interop.fields import Fields
from alm_jax.interop.format import Format
from alm_jax.interop.llama import causal_lm_parity
from alm_jax.interop.shapes import published_heads


def gpt2_entries(config: Gpt2Config, *, prefix: str = "", path: Path = ("params",)) -> Iterator[Entry]:
    """Every key of a GPT2Model; ``prefix`` and ``path`` place it inside a larger model."""
    width, blocks = config.width, (*path, "blocks")
    yield from embedding(f"{prefix}wte", (*path, "token_embed"), config.vocab_size, width)
    yield from embedding(f"{prefix}wpe", (*path, "position_embed"), config.max_positions, width)
    for i in range(config.num_layers):
        theirs = f"{prefix}h.{i}"
        yield from norm(f"{theirs}.ln_1", (*blocks, "attention_norm"), width, (i,))
        yield from _conv1d(f"{theirs}.attn.c_attn", (*blocks, "attention", "qkv"), width, 3 * width, (i,))
        yield from _conv1d(f"{theirs}.attn.c_proj", (*blocks, "attention", "out"), width, width, (i,))
        yield from norm(f"{theirs}.ln_2", (*blocks, "mlp_norm"), width, (i,))
        yield from _conv1d(f"{theirs}.mlp.c_fc", (*blocks, "mlp", "up"), width, config.mlp_dim, (i,))
        yield from _conv1d(f"{theirs}.mlp.c_proj", (*blocks, "mlp", "down"), config.mlp_dim, width, (i,))
    yield from norm(f"{prefix}ln_f", (*path, "norm"), width)


def _conv1d(key: str, path: Path, inputs: int, outputs: int, index: Index) -> Iterator[Entry]:
    """``weight`` [inputs outputs] and ``bias`` of transformers' Conv1D, which is a linear layer."""
    yield Entry(f"{key}.weight", (*path, "kernel"), (inputs, outputs), index=index)
    yield Entry(f"{key}.bias", (*path, "bias"), (outputs,), index=index)


def infer_gpt2_config(
    shapes: Mapping[str, tuple[int, ...]], like: Gpt2Config, *, prefix: str = ""
) -> Gpt2Config:
    """The config of an archive's GPT-2 from its shapes; what they do not show is as in ``like``, heads of 64."""
    vocab_size, width = shapes[f"{prefix}wte.weight"]
    layers = re.compile(rf"{re.escape(prefix)}h\.(\d+)\.")
    return dataclasses.replace(
        like,
        vocab_size=vocab_size,
        width=width,
        num_layers=1 + max(int(found[1]) for key in shapes if (found := layers.match(key))),
        num_heads=published_heads(width),
        mlp_dim=shapes[f"{prefix}h.0.mlp.c_fc.weight"][1],
        max_positions=shapes[f"{prefix}wpe.weight"][0],
    )


def read_gpt2_config(fields: Mapping[str, Any]) -> Gpt2Config:
    """config.json of a GPT-2, absent fields at transformers' defaults.

    Raises:
        UserError: the model is not one that ours computes, or has several rates of dropout.
    """
    fields = Fields.of(fields)
    fixed = {
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    }
    fields.only(fixed, "our GPT-2")
    rates = {fields.rate(name, 0.1) for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    if len(rates) > 1:
        raise UserError(
            f"{fields.place}: resid_pdrop, embd_pdrop and attn_pdrop are {sorted(rates)}; our GPT-2 has one rate"
        )
    width = fields.size("n_embd", 768)
    return Gpt2Config(
        vocab_size=fields.size("vocab_size", 50257),
        width=width,
        num_layers=fields.size("n_layer", 12),
        num_heads=fields.divisor("n_head", 12, of=width),
        mlp_dim=fields.size_or_none("n_inner") or 4 * width,
        max_positions=fields.size("n_positions", 1024),
        layer_norm_eps=fields.number("layer_norm_epsilon", 1e-5, above=0.0),
        dropout=rates.pop(),
    )


def write_gpt2_config(config: Gpt2Config) -> dict[str, Any]:
    """config.json of the model that computes what ``config`` computes."""
    return {
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_embd": config.width,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.mlp_dim,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.layer_norm_eps,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
    }


GPT2 = Format(
    name="gpt2",
    config_type=Gpt2Config,
    abstract=functools.partial(family.abstract, FAMILY),
    entries=functools.partial(gpt2_entries, prefix="transformer."),
    copies=lambda _: {"lm_head.weight": "transformer.wte.weight"},
    optional=lambda _: frozenset({"lm_head.weight"}),
    architectures=("GPT2LMHeadModel",),
    read_config=read_gpt2_config,
    write_config=write_gpt2_config,
)
GPT2_MODEL = dataclasses.replace(
    GPT2,
    name="gpt2-model",
    entries=gpt2_entries,
    copies=lambda _: {},
    optional=lambda _: frozenset(),
    architectures=("GPT2Model",),
)
GPT2_HUB = dataclasses.replace(
    GPT2_MODEL,
    name="gpt2-hub",
    architectures=("GPT2LMHeadModel",),
    # The causal mask, stored once a layer.
    ignored=(r"h\.\d+\.attn\.bias",),
)
"""Layout of openai-community/gpt2, -medium, -large and -xl on the Hub, written by an old version of the class."""
FORMATS = (GPT2, GPT2_MODEL, GPT2_HUB)
PARITY = (causal_lm_parity("gpt2, nano, logits", GPT2, FAMILY, NANO),)
