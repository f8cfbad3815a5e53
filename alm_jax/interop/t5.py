"""T5, T5 v1.1 and Flan-T5 as `transformers.T5ForConditionalGeneration` and `T5EncoderModel` save them."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy as np

from alm_jax.encoders import family
from alm_jax.encoders.text.t5 import (
    ENCODER_FAMILY,
    FAMILY,
    NANO,
    T5Config,
    T5EncoderConfig,
    encoder_config,
)
from alm_jax.interop.entry import Entry, Path, embedding, linear, norm
from alm_jax.interop.fields import Fields
from alm_jax.interop.format import Format
from alm_jax.interop.parity import Parity, RealInputs
from alm_jax.interop.safetensors_io import Arrays

_MLPS = {"relu": "relu", "gated-gelu": "gated_gelu"}


def t5_encoder_entries(config: T5EncoderConfig) -> Iterator[Entry]:
    """Every key of a T5EncoderModel."""
    yield from embedding("shared", ("params", "token_embed"), config.vocab_size, config.width)
    yield from _stack(config, "encoder", config.num_layers)


def t5_entries(config: T5Config) -> Iterator[Entry]:
    """Every key of a T5ForConditionalGeneration."""
    yield from t5_encoder_entries(config)
    yield from _stack(config, "decoder", config.num_decoder_layers)
    if not config.tied_head:
        yield from linear("lm_head", ("params", "head"), config.width, config.vocab_size, use_bias=False)


def _stack(config: T5EncoderConfig, stack: str, num_layers: int) -> Iterator[Entry]:
    width, inner = config.width, config.num_heads * config.head_dim
    path: Path = ("params", stack)
    yield from norm(f"{stack}.final_layer_norm", (*path, "norm"), width, use_bias=False)
    yield Entry(
        f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        (*path, "relative_bias", "embedding"),
        (config.num_buckets, config.num_heads),
    )
    halves = ["attention"] + ["cross"] * (stack == "decoder") + ["mlp"]
    for i in range(num_layers):
        for number, half in enumerate(halves):
            theirs = f"{stack}.block.{i}.layer.{number}"
            yield from norm(
                f"{theirs}.layer_norm", (*path, "blocks", f"{half}_norm"), width, (i,), use_bias=False
            )
            if half == "mlp":
                gated = config.mlp == "gated_gelu"
                for key, name in {"wi_0": "gate", "wi_1": "up"}.items() if gated else [("wi", "up")]:
                    ours: Path = (*path, "blocks", "mlp", name)
                    key = f"{theirs}.DenseReluDense.{key}"
                    yield from linear(key, ours, width, config.mlp_dim, (i,), use_bias=False)
                ours = (*path, "blocks", "mlp", "down")
                key = f"{theirs}.DenseReluDense.wo"
                yield from linear(key, ours, config.mlp_dim, width, (i,), use_bias=False)
                continue
            attention = "SelfAttention" if half == "attention" else "EncDecAttention"
            blocks: Path = (*path, "blocks", "attention" if half == "attention" else "cross_attention")
            # Keys and values of all layers' cross-attention are one stack, outside the blocks.
            shared: Path = blocks if half == "attention" else ("params", "cross_key_value")
            for key, ours in {
                "q": (*blocks, "query"),
                "k": (*shared, "key"),
                "v": (*shared, "value"),
            }.items():
                yield from linear(f"{theirs}.{attention}.{key}", ours, width, inner, (i,), use_bias=False)
            out = (*blocks, "out")
            yield from linear(f"{theirs}.{attention}.o", out, inner, width, (i,), use_bias=False)


def read_t5_encoder_config(fields: Mapping[str, Any]) -> T5EncoderConfig:
    """config.json of any T5 to its encoder, absent fields at transformers' defaults."""
    fields = Fields.of(fields)
    mlp = fields.word("feed_forward_proj", "relu", among=tuple(_MLPS))
    return T5EncoderConfig(
        vocab_size=fields.size("vocab_size", 32128),
        width=fields.size("d_model", 512),
        num_layers=fields.size("num_layers", 6),
        num_heads=fields.size("num_heads", 8),
        head_dim=fields.size("d_kv", 64),
        mlp_dim=fields.size("d_ff", 2048),
        mlp=_MLPS[mlp],  # type: ignore[arg-type]
        num_buckets=fields.size("relative_attention_num_buckets", 32, least=4),
        max_distance=fields.size("relative_attention_max_distance", 128),
        rms_norm_eps=fields.number("layer_norm_epsilon", 1e-6, above=0.0),
        dropout=fields.rate("dropout_rate", 0.1),
        pad_id=fields.token_id("pad_token_id", 0),
    )


def read_t5_config(fields: Mapping[str, Any]) -> T5Config:
    """config.json of a T5ForConditionalGeneration, absent fields at transformers' defaults.

    transformers 5 says that every head is tied, and keeps what the published configs say in scale_decoder_outputs:
    states are scaled for a tied head, and not for one with a matrix of its own. Which of the two a file has its keys
    tell (`_with_keys`): what that release makes anew has neither matrix nor scale.
    """
    fields = Fields.of(fields)
    encoder = read_t5_encoder_config(fields)
    num_decoder_layers = fields.size_or_none("num_decoder_layers")
    return T5Config(
        **{field.name: getattr(encoder, field.name) for field in dataclasses.fields(encoder)},
        num_decoder_layers=encoder.num_layers if num_decoder_layers is None else num_decoder_layers,
        tied_head=fields.flag("scale_decoder_outputs", fields.flag("tie_word_embeddings", True)),
    )


def write_t5_config(config: T5EncoderConfig) -> dict[str, Any]:
    """config.json of the model that computes what ``config`` computes, with a decoder or without one."""
    whole = config if isinstance(config, T5Config) else None
    fields = {
        "model_type": "t5",
        "vocab_size": config.vocab_size,
        "d_model": config.width,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.num_buckets,
        "relative_attention_max_distance": config.max_distance,
        "feed_forward_proj": {ours: theirs for theirs, ours in _MLPS.items()}[config.mlp],
        "layer_norm_epsilon": config.rms_norm_eps,
        "dropout_rate": config.dropout,
        "pad_token_id": config.pad_id,
        "decoder_start_token_id": config.pad_id,
        "is_encoder_decoder": whole is not None,
        # What transformers 5 reads from it; before, it was both.
        "tie_word_embeddings": whole is None or whole.scales_states,
    }
    return fields if whole is None else fields | {"num_decoder_layers": whole.num_decoder_layers}


def _with_keys(config: T5Config, keys: Set[str]) -> T5Config:
    """Returns the config with the head that the file has."""
    if config.tied_head or _HEAD in keys:
        return config
    return dataclasses.replace(config, tied_head=True, has_scaled_states=False)


def _copies(config: T5EncoderConfig) -> dict[str, str]:
    """Names of the table of embeddings for all modules that share it; early releases wrote some of them."""
    if not isinstance(config, T5Config):
        return {"encoder.embed_tokens.weight": "shared.weight"}
    tied = ["lm_head"] if config.tied_head else []
    return {
        f"{name}.weight": "shared.weight" for name in ("encoder.embed_tokens", "decoder.embed_tokens", *tied)
    }


_HEAD = "lm_head.weight"
_UNREAD = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def _unread(config: T5Config) -> Arrays:
    """A table of positions for cross-attention, which the first T5's files have and no code uses."""
    return {_UNREAD: np.zeros((config.num_buckets, config.num_heads), np.float32)}


T5_ENCODER = Format(
    name="t5_encoder",
    config_type=T5EncoderConfig,
    abstract=functools.partial(family.abstract, ENCODER_FAMILY),
    entries=t5_encoder_entries,
    copies=_copies,
    optional=lambda config: frozenset(_copies(config)),
    architectures=("T5EncoderModel",),
    read_config=read_t5_encoder_config,
    write_config=write_t5_config,
)
T5 = Format(
    name="t5",
    config_type=T5Config,
    abstract=functools.partial(family.abstract, FAMILY),
    entries=t5_entries,
    buffers=_unread,
    unread=lambda _: frozenset({_UNREAD}),
    copies=_copies,
    optional=lambda config: frozenset(_copies(config)) | {_UNREAD},
    architectures=("T5ForConditionalGeneration",),
    with_keys=_with_keys,
    read_config=read_t5_config,
    write_config=write_t5_config,
)
FORMATS = (T5_ENCODER, T5)


def build_oracle(layout: Format, config: T5EncoderConfig) -> Any:
    """The class of transformers, in evaluation mode, with a head of its own where the config has one.

    Its RMSNorm squares and averages in float32 in every dtype; that would be all the error there is in float64, so
    the wider of float32 and the input's dtype is put in its place.
    """
    import torch
    import transformers
    from transformers.models.t5.modeling_t5 import T5LayerNorm

    fields = write_t5_config(config) | {"attn_implementation": "eager"}
    module = getattr(transformers, layout.architectures[0])(
        transformers.AutoConfig.for_model(**fields)
    ).eval()
    if isinstance(config, T5Config) and not config.tied_head:
        # A clone, because transformers 5 ties what it makes anew, whatever the config says.
        module.lm_head.weight = torch.nn.Parameter(module.lm_head.weight.detach().clone())

    def normalise(layer: Any, x: Any) -> Any:
        return layer.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + layer.variance_epsilon))

    for layer in module.modules():
        if isinstance(layer, T5LayerNorm):
            layer.forward = functools.partial(normalise, layer)  # type: ignore[method-assign]
    return module


def _inputs(config: T5EncoderConfig, real: RealInputs) -> dict[str, np.ndarray]:
    """Captions as the source, and the same captions after a padding token as what is written."""
    ids, mask = real.token_ids(config.vocab_size, 160)
    text_ids, text_mask = ids[:, :32], mask[:, :32]
    start = np.full_like(ids[:, :1], config.pad_id)
    return {
        "source_ids": ids,
        "source_mask": mask,
        "ids": np.concatenate([start, text_ids[:, :-1]], axis=1),
        "mask": np.concatenate([np.ones_like(start, bool), text_mask[:, :-1]], axis=1),
    }


def _whole(config: T5Config, name: str) -> Parity:
    def theirs(module: Any, given: dict[str, Any]) -> Any:
        logits = module(
            input_ids=given["source_ids"],
            attention_mask=given["source_mask"].long(),
            decoder_input_ids=given["ids"],
            decoder_attention_mask=given["mask"].long(),
        ).logits
        return logits * given["mask"][..., None]

    def ours(config: T5Config, variables: Any, given: dict[str, Any], dtype: Any) -> Any:
        inputs = (given[key] for key in ("source_ids", "source_mask", "ids", "mask"))
        return family.apply(FAMILY, config, variables, *inputs, dtype=dtype) * given["mask"][..., None]

    return Parity(
        name=name,
        layout=T5,
        config=config,
        oracle=functools.partial(build_oracle, T5),
        oracle_name="transformers.T5ForConditionalGeneration",
        inputs=_inputs,
        ours=ours,
        theirs=theirs,
    )


PARITY = (
    _whole(dataclasses.replace(NANO, mlp="relu", tied_head=True, num_decoder_layers=3), "t5, nano"),
    _whole(NANO, "flan-t5, nano"),
    _whole(
        dataclasses.replace(NANO, tied_head=True, has_scaled_states=False),
        "t5 as transformers 5 makes it anew, nano",
    ),
    Parity(
        name="t5 encoder, nano",
        layout=T5_ENCODER,
        config=encoder_config(NANO),
        oracle=functools.partial(build_oracle, T5_ENCODER),
        oracle_name="transformers.T5EncoderModel",
        inputs=_inputs,
        ours=lambda config, variables, given, dtype: (
            family.apply(
                ENCODER_FAMILY,
                config,
                variables,
                given["source_ids"],
                given["source_mask"],
                dtype=dtype,
                output="states",
            )
            * given["source_mask"][..., None]
        ),
        theirs=lambda module, given: (
            module(given["source_ids"], attention_mask=given["source_mask"].long()).last_hidden_state
            * given["source_mask"][..., None]
        ),
    ),
)
