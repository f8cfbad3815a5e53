"""CLIP's text tower as `transformers.CLIPTextModelWithProjection` and `CLIPTextModel` save it."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from alm_jax.encoders import family
from alm_jax.encoders.text.clip_text import FAMILY, NANO, ClipTextConfig
from alm_jax.errors import UserError
from alm_jax.interop.entry import Entry, Path, embedding, fused_qkv, linear, norm
from alm_jax.interop.fields import Fields
from alm_jax.interop.format import Format
from alm_jax.interop.parity import Parity, RealInputs
from alm_jax.interop.safetensors_io import Arrays

# What transformers writes for "the largest id", the end token that it knew before it knew the right one.
_LARGEST_ID = 2


def clip_text_entries(config: ClipTextConfig, *, prefix: str = "") -> Iterator[Entry]:
    """Every key of a CLIPTextModel; ``prefix`` places it inside a larger model."""
    width = config.width
    tables = (("token", config.vocab_size), ("position", config.max_positions))
    for name, rows in tables:
        yield from embedding(f"{prefix}embeddings.{name}_embedding", ("params", f"{name}_embed"), rows, width)
    blocks: Path = ("params", "blocks")
    for i in range(config.num_layers):
        theirs = f"{prefix}encoder.layers.{i}"
        query, key, value = (f"{theirs}.self_attn.{name}_proj" for name in "qkv")
        yield from fused_qkv((query, key, value), (*blocks, "attention", "qkv"), width, width, (i,))
        yield from linear(f"{theirs}.self_attn.out_proj", (*blocks, "attention", "out"), width, width, (i,))
        yield from norm(f"{theirs}.layer_norm1", (*blocks, "attention_norm"), width, (i,))
        yield from linear(f"{theirs}.mlp.fc1", (*blocks, "mlp", "up"), width, config.mlp_dim, (i,))
        yield from linear(f"{theirs}.mlp.fc2", (*blocks, "mlp", "down"), config.mlp_dim, width, (i,))
        yield from norm(f"{theirs}.layer_norm2", (*blocks, "mlp_norm"), width, (i,))
    yield from norm(f"{prefix}final_layer_norm", ("params", "norm"), width)


def projected_entries(config: ClipTextConfig) -> Iterator[Entry]:
    """Every key of a CLIPTextModelWithProjection. Raises UserError where the config has no projection."""
    if config.embed_dim is None:
        raise UserError("embed_dim is None: a tower without a projection has the format clip_text_states")
    yield from clip_text_entries(config, prefix="text_model.")
    path: Path = ("params", "projection")
    yield from linear("text_projection", path, config.width, config.embed_dim, use_bias=False)


def _read(fields: Mapping[str, Any], *, is_projected: bool) -> ClipTextConfig:
    fields = Fields.of(fields)
    fields.only({"hidden_act": "quick_gelu"}, "our CLIP text tower")
    end_id = fields.token_id("eos_token_id", 49407)
    width = fields.size("hidden_size", 512)
    return ClipTextConfig(
        vocab_size=fields.size("vocab_size", 49408),
        width=width,
        num_layers=fields.size("num_hidden_layers", 12),
        num_heads=fields.divisor("num_attention_heads", 8, of=width),
        mlp_dim=fields.size("intermediate_size", 2048),
        max_positions=fields.size("max_position_embeddings", 77),
        layer_norm_eps=fields.number("layer_norm_eps", 1e-5, above=0.0),
        embed_dim=fields.size("projection_dim", 512) if is_projected else None,
        end_id=None if end_id == _LARGEST_ID else end_id,
    )


def write_clip_text_config(config: ClipTextConfig) -> dict[str, Any]:
    """config.json of the model that computes what ``config`` computes. Raises UserError where there is none."""
    if config.end_id == _LARGEST_ID:
        raise UserError(
            f"end_id is {_LARGEST_ID}, by which transformers means the largest id of a text; give the end token another"
        )
    fields = {
        "model_type": "clip_text_model",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_positions,
        "layer_norm_eps": config.layer_norm_eps,
        "hidden_act": "quick_gelu",
        "eos_token_id": _LARGEST_ID if config.end_id is None else config.end_id,
        "bos_token_id": None,
        "pad_token_id": None,
    }
    return fields if config.embed_dim is None else fields | {"projection_dim": config.embed_dim}


def _position_ids(config: ClipTextConfig, prefix: str) -> Arrays:
    """0, 1, 2, ..., which early releases of transformers wrote into every file and later ones leave out."""
    return {f"{prefix}embeddings.position_ids": np.arange(config.max_positions)[None, :]}


def _format(name: str, architecture: str, prefix: str, *, is_projected: bool) -> Format:
    buffers = functools.partial(_position_ids, prefix=prefix)
    return Format(
        name=name,
        config_type=ClipTextConfig,
        abstract=functools.partial(family.abstract, FAMILY),
        entries=projected_entries if is_projected else clip_text_entries,
        buffers=buffers,
        optional=lambda _: frozenset({f"{prefix}embeddings.position_ids"}),
        architectures=(architecture,),
        read_config=functools.partial(_read, is_projected=is_projected),
        write_config=write_clip_text_config,
    )


CLIP_TEXT = _format("clip_text", "CLIPTextModelWithProjection", "text_model.", is_projected=True)
CLIP_TEXT_STATES = _format("clip_text_states", "CLIPTextModel", "", is_projected=False)
FORMATS = (CLIP_TEXT, CLIP_TEXT_STATES)


def build_oracle(layout: Format, config: ClipTextConfig) -> Any:
    """The class of transformers, in evaluation mode.

    PyTorch's own attention, because the plain one of this model has its softmax in float32 in every dtype.
    """
    import transformers

    fields = write_clip_text_config(config) | {"attn_implementation": "sdpa"}
    return getattr(transformers, layout.architectures[0])(transformers.AutoConfig.for_model(**fields)).eval()


def _parity(layout: Format, config: ClipTextConfig, name: str) -> Parity:
    def inputs(config: ClipTextConfig, real: RealInputs) -> dict[str, np.ndarray]:
        """Captions, each with an end token, the largest id of the vocabulary, twice: the first one counts."""
        ids, mask = real.token_ids(config.vocab_size - 1, 48)
        lengths = mask.sum(axis=1)
        for row, length in zip(ids, lengths, strict=True):
            row[length - 2 : length] = config.vocab_size - 1
        return {"ids": np.where(mask, ids, 0), "mask": mask}

    def theirs(module: Any, given: dict[str, Any]) -> Any:
        outputs = module(given["ids"], attention_mask=given["mask"].long())
        return outputs.text_embeds if "text_embeds" in outputs else outputs.pooler_output

    return Parity(
        name=name,
        layout=layout,
        config=config,
        oracle=functools.partial(build_oracle, layout),
        oracle_name=f"transformers.{layout.architectures[0]}",
        inputs=inputs,
        ours=lambda config, variables, given, dtype: family.apply(
            FAMILY, config, variables, given["ids"], given["mask"], dtype=dtype
        ),
        theirs=theirs,
    )


PARITY = (
    _parity(CLIP_TEXT, NANO, "clip text, nano"),
    _parity(
        CLIP_TEXT_STATES,
        dataclasses.replace(NANO, embed_dim=None, end_id=NANO.vocab_size - 1),
        "clip text without projection, nano",
    ),
)
