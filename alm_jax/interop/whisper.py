"""Whisper as `transformers.WhisperModel` and `WhisperForConditionalGeneration` save it, and OpenAI's archives."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.encoders import family
from alm_jax.encoders.audio.whisper import WhisperEncoderConfig
from alm_jax.encoders.text.whisper_decoder import FAMILY, VARIANTS, WhisperConfig
from alm_jax.errors import UserError
from alm_jax.interop.entry import Entry, Path, embedding, linear, norm
from alm_jax.interop.fields import Fields
from alm_jax.interop.format import Format
from alm_jax.interop.parity import Parity, RealInputs
from alm_jax.interop.shapes import published_heads
from alm_jax.ops.frontends import ClipSpec, WhisperSpec, compute_features
from alm_jax.types import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Names:
    """Names of the parts of a block in a layout."""

    layers: str
    attention: str
    cross_attention: str
    projections: tuple[str, str, str, str]
    """Names of query, key, value and output."""
    attention_norm: str
    cross_attention_norm: str
    mlp_norm: str
    up: str
    down: str
    encoder_positions: str
    decoder_positions: str
    tokens: str
    encoder_norm: str
    decoder_norm: str


_TRANSFORMERS = _Names(
    layers="layers",
    attention="self_attn",
    cross_attention="encoder_attn",
    projections=("q_proj", "k_proj", "v_proj", "out_proj"),
    attention_norm="self_attn_layer_norm",
    cross_attention_norm="encoder_attn_layer_norm",
    mlp_norm="final_layer_norm",
    up="fc1",
    down="fc2",
    encoder_positions="embed_positions.weight",
    decoder_positions="embed_positions.weight",
    tokens="embed_tokens",
    encoder_norm="layer_norm",
    decoder_norm="layer_norm",
)
_OPENAI = _Names(
    layers="blocks",
    attention="attn",
    cross_attention="cross_attn",
    projections=("query", "key", "value", "out"),
    attention_norm="attn_ln",
    cross_attention_norm="cross_attn_ln",
    mlp_norm="mlp_ln",
    up="mlp.0",
    down="mlp.2",
    encoder_positions="positional_embedding",
    decoder_positions="positional_embedding",
    tokens="token_embedding",
    encoder_norm="ln_post",
    decoder_norm="ln",
)


def _block_entries(
    names: _Names, config: WhisperEncoderConfig, prefix: str, path: Path, num_layers: int, *, is_decoder: bool
) -> Iterator[Entry]:
    width, mlp_dim = config.width, config.mlp_dim
    attentions = [(names.attention, names.attention_norm, "attention")]
    if is_decoder:
        attentions.append((names.cross_attention, names.cross_attention_norm, "cross_attention"))
    for i in range(num_layers):
        theirs = f"{prefix}{names.layers}.{i}"
        for attention, attention_norm, ours in attentions:
            for key, name in zip(names.projections, ("query", "key", "value", "out"), strict=True):
                place = (*path, ours, name)
                yield from linear(
                    f"{theirs}.{attention}.{key}", place, width, width, (i,), use_bias=name != "key"
                )
            yield from norm(f"{theirs}.{attention_norm}", (*path, f"{ours}_norm"), width, (i,))
        yield from norm(f"{theirs}.{names.mlp_norm}", (*path, "mlp_norm"), width, (i,))
        yield from linear(f"{theirs}.{names.up}", (*path, "mlp", "up"), width, mlp_dim, (i,))
        yield from linear(f"{theirs}.{names.down}", (*path, "mlp", "down"), mlp_dim, width, (i,))


def whisper_encoder_entries(
    config: WhisperEncoderConfig, *, prefix: str, path: Path, names: _Names = _TRANSFORMERS
) -> Iterator[Entry]:
    """Every key of a WhisperEncoder or Qwen2AudioEncoder; ``prefix`` and ``path`` place it inside a larger model."""
    width = config.width
    for name, inputs in (("conv1", config.num_mels), ("conv2", width)):
        yield Entry(f"{prefix}{name}.weight", (*path, name, "kernel"), (width, inputs, 3), "conv")
        yield Entry(f"{prefix}{name}.bias", (*path, name, "bias"), (width,))
    key = f"{prefix}{names.encoder_positions}"
    yield Entry(key, (*path, "position_embed"), (config.max_positions, width))
    blocks = (*path, "blocks")
    yield from _block_entries(names, config, prefix, blocks, config.num_layers, is_decoder=False)
    yield from norm(f"{prefix}{names.encoder_norm}", (*path, "norm"), width)


def _entries(names: _Names, prefix: str, config: WhisperConfig) -> Iterator[Entry]:
    """Every key of a whole Whisper."""
    encoder, width = config.encoder, config.encoder.width
    yield from whisper_encoder_entries(
        encoder, prefix=f"{prefix}encoder.", path=("params", "encoder"), names=names
    )
    path, prefix = ("params", "decoder"), f"{prefix}decoder."
    yield from embedding(f"{prefix}{names.tokens}", (*path, "token_embed"), config.vocab_size, width)
    key = f"{prefix}{names.decoder_positions}"
    yield Entry(key, (*path, "position_embed"), (config.max_text_positions, width))
    blocks = (*path, "blocks")
    yield from _block_entries(names, encoder, prefix, blocks, config.num_layers, is_decoder=True)
    yield from norm(f"{prefix}{names.decoder_norm}", (*path, "norm"), width)


def read_whisper_config(fields: Mapping[str, Any]) -> WhisperConfig:
    """config.json of a WhisperModel or WhisperForConditionalGeneration, absent fields at transformers' defaults."""
    fields = Fields.of(fields)
    fixed = {"activation_function": "gelu", "scale_embedding": False, "tie_word_embeddings": True}
    fields.only(fixed, "our Whisper")
    width = fields.size("d_model", 384)
    heads, mlp_dim = (
        fields.divisor("encoder_attention_heads", 6, of=width),
        fields.size("encoder_ffn_dim", 1536),
    )
    if (fields.get("decoder_attention_heads", 6), fields.get("decoder_ffn_dim", 1536)) != (heads, mlp_dim):
        raise UserError(
            f"{fields.place}: encoder and decoder have different heads or feed-forward sizes ({heads}, {mlp_dim} in "
            "the encoder); our "
            "Whisper has the same in both, as every published one"
        )
    return WhisperConfig(
        encoder=WhisperEncoderConfig(
            num_mels=fields.size("num_mel_bins", 80),
            max_positions=fields.size("max_source_positions", 1500),
            width=width,
            num_layers=fields.size("encoder_layers", 4),
            num_heads=heads,
            mlp_dim=mlp_dim,
        ),
        vocab_size=fields.size("vocab_size", 51865),
        num_layers=fields.size("decoder_layers", 4),
        max_text_positions=fields.size("max_target_positions", 448),
    )


def write_whisper_config(config: WhisperConfig) -> dict[str, Any]:
    """config.json of the model that computes what ``config`` computes.

    The special tokens are those of transformers' defaults where the vocabulary is as large as Whisper's, and the last
    id elsewhere: a config of ours knows none.
    """
    encoder = config.encoder
    special = 50256 if config.vocab_size > 50257 else config.vocab_size - 1
    return {
        "model_type": "whisper",
        "vocab_size": config.vocab_size,
        "num_mel_bins": encoder.num_mels,
        "d_model": encoder.width,
        "encoder_layers": encoder.num_layers,
        "encoder_attention_heads": encoder.num_heads,
        "encoder_ffn_dim": encoder.mlp_dim,
        "decoder_layers": config.num_layers,
        "decoder_attention_heads": encoder.num_heads,
        "decoder_ffn_dim": encoder.mlp_dim,
        "max_source_positions": encoder.max_positions,
        "max_target_positions": config.max_text_positions,
        "activation_function": "gelu",
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "pad_token_id": special,
        "bos_token_id": special,
        "eos_token_id": special,
        "decoder_start_token_id": special + 1 if special == 50256 else special,
    }


def infer_whisper_config(shapes: Mapping[str, tuple[int, ...]]) -> WhisperConfig:
    """The config of OpenAI's archive from its shapes; heads are of 64 numbers."""

    def count(part: str) -> int:
        return 1 + max(int(key.split(".")[2]) for key in shapes if key.startswith(f"{part}.blocks."))

    width, num_mels, _ = shapes["encoder.conv1.weight"]
    return WhisperConfig(
        encoder=WhisperEncoderConfig(
            num_mels=num_mels,
            max_positions=shapes["encoder.positional_embedding"][0],
            width=width,
            num_layers=count("encoder"),
            num_heads=published_heads(width),
            mlp_dim=shapes["encoder.blocks.0.mlp.0.weight"][0],
        ),
        vocab_size=shapes["decoder.token_embedding.weight"][0],
        num_layers=count("decoder"),
        max_text_positions=shapes["decoder.positional_embedding"][0],
    )


_ABSTRACT = functools.partial(family.abstract, FAMILY)
WHISPER = Format(
    name="whisper",
    config_type=WhisperConfig,
    abstract=_ABSTRACT,
    entries=functools.partial(_entries, _TRANSFORMERS, ""),
    architectures=("WhisperModel",),
    read_config=read_whisper_config,
    write_config=write_whisper_config,
)
WHISPER_GENERATION = Format(
    name="whisper-generation",
    config_type=WhisperConfig,
    abstract=_ABSTRACT,
    entries=functools.partial(_entries, _TRANSFORMERS, "model."),
    copies=lambda _: {"proj_out.weight": "model.decoder.embed_tokens.weight"},
    optional=lambda _: frozenset({"proj_out.weight"}),
    architectures=("WhisperForConditionalGeneration",),
    read_config=read_whisper_config,
    write_config=write_whisper_config,
)
WHISPER_ARCHIVE = Format(
    name="whisper-archive",
    config_type=WhisperConfig,
    abstract=_ABSTRACT,
    entries=functools.partial(_entries, _OPENAI, ""),
    infer_config=infer_whisper_config,
    archive_entry=("model_state_dict",),
    signature="decoder.blocks.0.cross_attn_ln.weight",
)
FORMATS = (WHISPER, WHISPER_GENERATION, WHISPER_ARCHIVE)


def _build(kind: str, config: WhisperConfig) -> Any:
    import transformers

    fields = write_whisper_config(config) | {"attn_implementation": "eager"}
    model_type = fields.pop("model_type")
    return getattr(transformers, kind)(transformers.AutoConfig.for_model(model_type, **fields)).eval()


def _inputs(config: WhisperConfig, real: RealInputs) -> dict[str, np.ndarray]:
    clip_sec = config.encoder.max_positions / 50
    spec = WhisperSpec(num_mels=config.encoder.num_mels, clip=ClipSpec(clip_sec=clip_sec))
    features = compute_features(jnp.asarray(real.waveforms(spec.sample_rate_hz, clip_sec)), spec)
    ids, mask = real.token_ids(config.vocab_size, 24)
    return {"features": np.asarray(features), "ids": ids, "mask": mask}


def _encode(config: WhisperConfig, variables: PyTree, given: dict[str, jax.Array], dtype: Any) -> Any:
    return family.apply(FAMILY, config, variables, given["features"], dtype=dtype, method="encode")


def _write(config: WhisperConfig, variables: PyTree, given: dict[str, jax.Array], dtype: Any) -> Any:
    inputs = given["features"], given["ids"], given["mask"]
    logits = family.apply(FAMILY, config, variables, *inputs, dtype=dtype)
    return logits * given["mask"][:, :, None]


def _write_theirs(module: Any, given: dict[str, Any]) -> Any:
    logits = module(
        given["features"].transpose(1, 2),
        decoder_input_ids=given["ids"].long(),
        decoder_attention_mask=given["mask"].long(),
    ).logits
    return logits * given["mask"][:, :, None]


PARITY = (
    Parity(
        name="whisper encoder, nano",
        layout=WHISPER,
        config=VARIANTS["nano"],
        oracle=functools.partial(_build, "WhisperModel"),
        oracle_name="transformers.WhisperModel",
        inputs=_inputs,
        ours=_encode,
        theirs=lambda module, given: module.encoder(given["features"].transpose(1, 2)).last_hidden_state,
    ),
    Parity(
        name="whisper, nano",
        layout=WHISPER_GENERATION,
        config=VARIANTS["nano"],
        oracle=functools.partial(_build, "WhisperForConditionalGeneration"),
        oracle_name="transformers.WhisperForConditionalGeneration",
        inputs=_inputs,
        ours=_write,
        theirs=_write_theirs,
    ),
)
