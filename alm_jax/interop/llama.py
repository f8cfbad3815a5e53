"""Llama as `transformers.LlamaForCausalLM` saves it; Qwen2's layout (interop/qwen2.py) is the same with biases."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from alm_jax.encoders import family
from alm_jax.encoders.family import Family
from alm_jax.encoders.text.llama import FAMILY, NANO, LlamaConfig
from alm_jax.errors import UserError
from alm_jax.interop.entry import Entry, Path, embedding, linear, norm
from alm_jax.interop.fields import Fields
from alm_jax.interop.format import Format
from alm_jax.interop.parity import Parity, RealInputs
from alm_jax.nn.rotary import RopeScaling


def llama_entries(config: LlamaConfig, *, prefix: str = "", path: Path = ("params",)) -> Iterator[Entry]:
    """Every key of a LlamaForCausalLM or Qwen2ForCausalLM; ``prefix`` and ``path`` place it inside a larger model."""
    width, biased = config.width, config.has_qkv_bias
    head_dim = width // config.num_heads
    yield from embedding(f"{prefix}model.embed_tokens", (*path, "token_embed"), config.vocab_size, width)
    blocks = (*path, "blocks")
    for i in range(config.num_layers):
        theirs, attention, mlp = f"{prefix}model.layers.{i}", (*blocks, "attention"), (*blocks, "mlp")
        for key, name, heads in (
            ("q_proj", "query", config.num_heads),
            ("k_proj", "key", config.num_kv_heads),
            ("v_proj", "value", config.num_kv_heads),
        ):
            yield from linear(
                f"{theirs}.self_attn.{key}",
                (*attention, name),
                width,
                heads * head_dim,
                (i,),
                use_bias=biased,
            )
        yield from linear(
            f"{theirs}.self_attn.o_proj", (*attention, "out"), width, width, (i,), use_bias=False
        )
        for name, inputs, outputs in (
            ("gate", width, config.mlp_dim),
            ("up", width, config.mlp_dim),
            ("down", config.mlp_dim, width),
        ):
            yield from linear(
                f"{theirs}.mlp.{name}_proj", (*mlp, name), inputs, outputs, (i,), use_bias=False
            )
        for key, name in (("input_layernorm", "attention_norm"), ("post_attention_layernorm", "mlp_norm")):
            yield from norm(f"{theirs}.{key}", (*blocks, name), width, (i,), use_bias=False)
    yield from norm(f"{prefix}model.norm", (*path, "norm"), width, use_bias=False)
    if not config.tied_head:
        yield from linear(f"{prefix}lm_head", (*path, "head"), width, config.vocab_size, use_bias=False)


def tied_copies(config: LlamaConfig, *, prefix: str = "") -> dict[str, str]:
    """Keys of a tied head: left out by `save_pretrained`; other files repeat the table of embeddings."""
    return {f"{prefix}lm_head.weight": f"{prefix}model.embed_tokens.weight"} if config.tied_head else {}


def tied_keys(config: LlamaConfig) -> frozenset[str]:
    """Keys of `tied_copies`, none of which is written."""
    return frozenset(tied_copies(config))


def read_rope(fields: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Theta and scaling of a config.json: transformers 5 has "rope_parameters", before it "rope_theta" and
    "rope_scaling".

    Raises:
        UserError: the rotations are of a kind that we do not compute.
    """
    fields = Fields.of(fields)
    rope = fields.section("rope_parameters") or fields.section("rope_scaling")
    theta = rope.number("rope_theta", fields.number("rope_theta", 10000.0, above=0.0), above=0.0)
    kind = rope.word("rope_type" if "rope_type" in rope else "type", "default", among=("default", "llama3"))
    rope.only({"partial_rotary_factor": 1.0}, "our rotation of whole heads")
    if kind == "default":
        return theta, None
    scaling = RopeScaling(
        factor=rope.number("factor", math.nan, above=0.0),
        low_freq_factor=rope.number("low_freq_factor", math.nan, above=0.0),
        high_freq_factor=rope.number("high_freq_factor", math.nan, above=0.0),
        original_max_positions=rope.size("original_max_position_embeddings", 0),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise rope.error("high_freq_factor", f"more than low_freq_factor, {scaling.low_freq_factor:g}")
    return theta, scaling


def read_llama_config(fields: Mapping[str, Any]) -> LlamaConfig:
    """config.json of a LlamaForCausalLM, absent fields at transformers' defaults."""
    fields = Fields.of(fields)
    fields.only({"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}, "our Llama")
    return LlamaConfig(**read_shape(fields, dataclasses.asdict(LlamaConfig())))


def read_shape(fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Our fields from those that LlamaConfig and Qwen2Config of transformers share.

    Raises:
        UserError: heads are not of the width divided by their number.
    """
    fields = Fields.of(fields)
    width = fields.size("hidden_size", defaults["width"])
    num_heads = fields.divisor("num_attention_heads", defaults["num_heads"], of=width)
    head_dim = fields.size_or_none("head_dim") or width // num_heads
    if head_dim != width // num_heads:
        raise UserError(
            f"{fields.place}: head_dim is {head_dim}, but hidden_size {width} has {num_heads} heads of "
            f"{width // num_heads}; our heads share the width"
        )
    if head_dim % 2:
        raise fields.error(
            "num_attention_heads", f"heads of {width} that are even, for rotary positions", num_heads
        )
    num_kv_heads = fields.size_or_none("num_key_value_heads") or num_heads
    if num_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", f"a divisor of the {num_heads} heads", num_kv_heads)
    theta, scaling = read_rope(fields)
    return {
        "vocab_size": fields.size("vocab_size", defaults["vocab_size"]),
        "width": width,
        "num_layers": fields.size("num_hidden_layers", defaults["num_layers"]),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "mlp_dim": fields.size("intermediate_size", defaults["mlp_dim"]),
        "max_positions": fields.size("max_position_embeddings", defaults["max_positions"]),
        "rms_norm_eps": fields.number("rms_norm_eps", 1e-6, above=0.0),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tied_head": fields.flag("tie_word_embeddings", False),
    }


def write_llama_config(config: LlamaConfig) -> dict[str, Any]:
    """config.json of the LlamaForCausalLM that computes what ``config`` computes."""
    return write_shape(config) | {"model_type": "llama", "attention_bias": False, "mlp_bias": False}


def write_shape(config: LlamaConfig) -> dict[str, Any]:
    """The fields that LlamaConfig and Qwen2Config of transformers share."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_max_positions,
        }
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tied_head,
        "hidden_act": "silu",
    }


LLAMA = Format(
    name="llama",
    config_type=LlamaConfig,
    abstract=functools.partial(family.abstract, FAMILY),
    entries=llama_entries,
    copies=tied_copies,
    optional=tied_keys,
    architectures=("LlamaForCausalLM",),
    read_config=read_llama_config,
    write_config=write_llama_config,
)
FORMATS = (LLAMA,)


def widen(model: Any, theta: float) -> None:
    """Makes a LlamaModel or Qwen2Model of transformers compute in float64 where it casts to float32 by itself.

    Its norms become PyTorch's own, and its rotary tables the same formula (frequencies without scaling).
    """
    import torch

    size = 2 * model.rotary_emb.inv_freq.shape[0]
    frequencies = theta ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)

    def tables(x: Any, position_ids: Any) -> tuple[Any, Any]:
        angles = position_ids[..., None].double() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    model.rotary_emb.forward = tables
    for part in model.modules():
        if type(part).__name__.endswith("RMSNorm"):
            part.forward = functools.partial(
                torch.nn.functional.rms_norm,
                normalized_shape=part.weight.shape,
                weight=part.weight,
                eps=part.variance_epsilon,
            )


def causal_lm_parity(
    name: str,
    layout: Format,
    of: Family,
    config: Any,
    prepare: Callable[[Any], None] = lambda module: None,
) -> Parity:
    """Logits of a causal language model on two captions, the shorter padded on the left; those of padding are 0.

    ``prepare`` changes the oracle where it runs in float64.
    """

    def build(config: Any) -> Any:
        import transformers

        # "eager" casts its softmax to float32 in a model of any dtype.
        fields = layout.write_config(config) | {"attn_implementation": "sdpa"}  # type: ignore[misc]
        return getattr(transformers, layout.architectures[0])(
            transformers.AutoConfig.for_model(**fields)
        ).eval()

    def inputs(config: Any, real: RealInputs) -> dict[str, np.ndarray]:
        ids, mask = real.token_ids(config.vocab_size, 40)
        shift = [np.argmax(row[::-1]) for row in mask]
        return {
            "ids": np.stack([np.roll(row, by) for row, by in zip(ids, shift, strict=True)]),
            "mask": np.stack([np.roll(row, by) for row, by in zip(mask, shift, strict=True)]),
        }

    def ours(config: Any, variables: Any, given: dict[str, Any], dtype: Any) -> Any:
        logits = family.apply(of, config, variables, given["ids"], given["mask"], dtype=dtype)
        return logits * given["mask"][:, :, None]

    def theirs(module: Any, given: dict[str, Any]) -> Any:
        import torch

        if module.dtype == torch.float64:
            prepare(module)
        mask = given["mask"].long()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = module(given["ids"].long(), attention_mask=mask, position_ids=positions).logits
        return torch.where(given["mask"][:, :, None], logits, 0.0)

    return Parity(
        name=name,
        layout=layout,
        config=config,
        oracle=build,
        oracle_name=f"transformers.{layout.architectures[0]}",
        inputs=inputs,
        ours=ours,
        theirs=theirs,
        tolerance=1e-3,
    )


PARITY = (
    causal_lm_parity(
        "llama, nano, logits",
        LLAMA,
        FAMILY,
        NANO,
        lambda module: widen(module.model, NANO.rope_theta),
    ),
)
