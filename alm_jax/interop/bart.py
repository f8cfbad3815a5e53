"""BART as `transformers.BartModel` and `BartForConditionalGeneration` save it."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from alm_jax.encoders import family
from alm_jax.encoders.text.bart import FAMILY, NANO, POSITION_OFFSET, BartConfig
from alm_jax.errors import UserError
from alm_jax.interop.entry import Entry, Path, embedding, fused_qkv, linear, norm
from alm_jax.interop.fields import Fields
from alm_jax.interop.format import Format
from alm_jax.interop.parity import Parity, RealInputs
from alm_jax.interop.safetensors_io import Arrays


def bart_entries(config: BartConfig, *, prefix: str = "") -> Iterator[Entry]:
    """Every key of a BartModel; ``prefix`` places it inside a larger model."""
    width = config.width
    yield from embedding(f"{prefix}shared", ("params", "token_embed"), config.vocab_size, width)
    for stack, num_layers in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
        path: Path = ("params", stack)
        rows = config.max_positions + POSITION_OFFSET
        yield from embedding(f"{prefix}{stack}.embed_positions", (*path, "position_embed"), rows, width)
        yield from norm(f"{prefix}{stack}.layernorm_embedding", (*path, "embed_norm"), width)
        blocks: Path = (*path, "blocks")
        for i in range(num_layers):
            theirs = f"{prefix}{stack}.layers.{i}"
            query, key, value = (f"{theirs}.self_attn.{name}_proj" for name in "qkv")
            yield from fused_qkv((query, key, value), (*blocks, "attention", "qkv"), width, width, (i,))
            out: Path = (*blocks, "attention", "out")
            yield from linear(f"{theirs}.self_attn.out_proj", out, width, width, (i,))
            yield from norm(f"{theirs}.self_attn_layer_norm", (*blocks, "attention_norm"), width, (i,))
            if stack == "decoder":
                # Keys and values of all layers' cross-attention are one stack, outside the blocks.
                for name, ours in {
                    "q": (*blocks, "cross_attention", "query"),
                    "k": ("params", "cross_key_value", "key"),
                    "v": ("params", "cross_key_value", "value"),
                    "out": (*blocks, "cross_attention", "out"),
                }.items():
                    yield from linear(f"{theirs}.encoder_attn.{name}_proj", ours, width, width, (i,))
                yield from norm(f"{theirs}.encoder_attn_layer_norm", (*blocks, "cross_norm"), width, (i,))
            yield from linear(f"{theirs}.fc1", (*blocks, "mlp", "up"), width, config.mlp_dim, (i,))
            yield from linear(f"{theirs}.fc2", (*blocks, "mlp", "down"), config.mlp_dim, width, (i,))
            yield from norm(f"{theirs}.final_layer_norm", (*blocks, "mlp_norm"), width, (i,))


def read_bart_config(fields: Mapping[str, Any]) -> BartConfig:
    """config.json of a BartModel or BartForConditionalGeneration, absent fields at transformers' defaults.

    Raises:
        UserError: embeddings are scaled, the activation is another, or encoder and decoder differ but in depth.
    """
    fields = Fields.of(fields)
    fields.only({"activation_function": "gelu", "scale_embedding": False}, "our BART")
    width, sizes = fields.size("d_model", 1024), {}
    for name, default in (("attention_heads", 16), ("ffn_dim", 4096)):
        encoder, decoder = (fields.size(f"{stack}_{name}", default) for stack in ("encoder", "decoder"))
        if encoder != decoder:
            raise UserError(
                f"{fields.place}: encoder_{name} is {encoder} and decoder_{name} is {decoder}; in our BART both are "
                "one number"
            )
        sizes[name] = encoder
    fields.divisor("encoder_attention_heads", 16, of=width)
    return BartConfig(
        vocab_size=fields.size("vocab_size", 50265),
        width=width,
        num_layers=fields.size("encoder_layers", 12),
        num_decoder_layers=fields.size("decoder_layers", 12),
        num_heads=sizes["attention_heads"],
        mlp_dim=sizes["ffn_dim"],
        max_positions=fields.size("max_position_embeddings", 1024),
        dropout=fields.rate("dropout", 0.1),
        pad_id=fields.token_id("pad_token_id", 1),
        start_id=fields.token_id("decoder_start_token_id", 2),
    )


def write_bart_config(config: BartConfig) -> dict[str, Any]:
    """config.json of the model that computes what ``config`` computes."""
    return {
        "model_type": "bart",
        "vocab_size": config.vocab_size,
        "d_model": config.width,
        "encoder_layers": config.num_layers,
        "decoder_layers": config.num_decoder_layers,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.mlp_dim,
        "decoder_ffn_dim": config.mlp_dim,
        "max_position_embeddings": config.max_positions,
        "dropout": config.dropout,
        "attention_dropout": config.dropout,
        "pad_token_id": config.pad_id,
        "decoder_start_token_id": config.start_id,
        "activation_function": "gelu",
        "scale_embedding": False,
    }


def _copies(names: tuple[str, ...], prefix: str) -> dict[str, str]:
    """Names of the table of embeddings for all modules that share it; early releases wrote some of them."""
    return {f"{name}.weight": f"{prefix}shared.weight" for name in names}


def _final_logits_bias(config: BartConfig) -> Arrays:
    """A bias of the logits that is never trained: zero in every published file."""
    return {"final_logits_bias": np.zeros((1, config.vocab_size), np.float32)}


_TABLES = ("encoder.embed_tokens", "decoder.embed_tokens")
_LM_TABLES = (*(f"model.{name}" for name in _TABLES), "lm_head")
BART = Format(
    name="bart",
    config_type=BartConfig,
    abstract=functools.partial(family.abstract, FAMILY),
    entries=bart_entries,
    copies=lambda config: _copies(_TABLES, ""),
    optional=lambda config: frozenset(_copies(_TABLES, "")),
    architectures=("BartModel",),
    read_config=read_bart_config,
    write_config=write_bart_config,
)
BART_LM = Format(
    name="bart_lm",
    config_type=BartConfig,
    abstract=functools.partial(family.abstract, FAMILY),
    entries=functools.partial(bart_entries, prefix="model."),
    buffers=_final_logits_bias,
    copies=lambda config: _copies(_LM_TABLES, "model."),
    optional=lambda config: frozenset(_copies(_LM_TABLES, "model.")),
    architectures=("BartForConditionalGeneration",),
    read_config=read_bart_config,
    write_config=write_bart_config,
)
FORMATS = (BART, BART_LM)


def build_oracle(layout: Format, config: BartConfig) -> Any:
    """The class of transformers, in evaluation mode."""
    import transformers

    fields = write_bart_config(config) | {"attn_implementation": "eager"}
    return getattr(transformers, layout.architectures[0])(transformers.AutoConfig.for_model(**fields)).eval()


def _inputs(config: BartConfig, real: RealInputs) -> dict[str, np.ndarray]:
    """Captions as the source, and the same captions after the start token as what is written."""
    ids, mask = real.token_ids(config.vocab_size, 96)
    start = np.full_like(ids[:, :1], config.start_id)
    return {
        "source_ids": ids,
        "source_mask": mask,
        "ids": np.concatenate([start, ids[:, :31]], axis=1),
        "mask": np.concatenate([np.ones_like(start, bool), mask[:, :31]], axis=1),
    }


def _parity(layout: Format, output: str) -> Parity:
    def theirs(module: Any, given: dict[str, Any]) -> Any:
        outputs = module(
            input_ids=given["source_ids"],
            attention_mask=given["source_mask"].long(),
            decoder_input_ids=given["ids"],
            decoder_attention_mask=given["mask"].long(),
        )
        read = outputs.logits if output == "logits" else outputs.last_hidden_state
        return read * given["mask"][..., None]

    def ours(config: BartConfig, variables: Any, given: dict[str, Any], dtype: Any) -> Any:
        inputs = (given[key] for key in ("source_ids", "source_mask", "ids", "mask"))
        read = family.apply(FAMILY, config, variables, *inputs, dtype=dtype, output=output)
        return read * given["mask"][..., None]

    return Parity(
        name=f"{layout.name}, nano",
        layout=layout,
        config=NANO,
        oracle=functools.partial(build_oracle, layout),
        oracle_name=f"transformers.{layout.architectures[0]}",
        inputs=_inputs,
        ours=ours,
        theirs=theirs,
    )


PARITY = (_parity(BART, "states"), _parity(BART_LM, "logits"))
