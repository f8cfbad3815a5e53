"""AST as `transformers.ASTModel` and `ASTForAudioClassification` save it, and as its authors' archives hold it."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.encoders import family
from alm_jax.encoders.audio.ast import FAMILY, NANO, Ast, AstConfig
from alm_jax.errors import UserError
from alm_jax.interop.entry import Entry, Path, fused_qkv, linear, norm
from alm_jax.interop.fields import Fields
from alm_jax.interop.format import Format
from alm_jax.interop.parity import Parity, RealInputs
from alm_jax.interop.shapes import published_heads
from alm_jax.ops.frontends import AstSpec, ClipSpec, compute_features
from alm_jax.types import PyTree


def _model_entries(config: AstConfig, *, prefix: str = "", path: Path = ("params",)) -> Iterator[Entry]:
    """Every key of an ASTModel."""
    width, size = config.width, config.patch_size
    for name in ("cls_token", "distillation_token"):
        yield Entry(f"{prefix}embeddings.{name}", (*path, name), (1, 1, width))
    num_positions = 2 + config.grid[0] * config.grid[1]
    yield Entry(
        f"{prefix}embeddings.position_embeddings", (*path, "position_embed"), (1, num_positions, width)
    )
    key = f"{prefix}embeddings.patch_embeddings.projection"
    yield Entry(f"{key}.weight", (*path, "patch_embed", "kernel"), (width, 1, size, size), "conv")
    yield Entry(f"{key}.bias", (*path, "patch_embed", "bias"), (width,))
    blocks = (*path, "blocks")
    for i in range(config.num_layers):
        theirs = f"{prefix}encoder.layer.{i}"
        query, key, value = (f"{theirs}.attention.attention.{name}" for name in ("query", "key", "value"))
        yield from norm(f"{theirs}.layernorm_before", (*blocks, "attention_norm"), width, (i,))
        yield from fused_qkv((query, key, value), (*blocks, "attention", "qkv"), width, width, (i,))
        yield from linear(
            f"{theirs}.attention.output.dense", (*blocks, "attention", "out"), width, width, (i,)
        )
        yield from norm(f"{theirs}.layernorm_after", (*blocks, "mlp_norm"), width, (i,))
        yield from linear(f"{theirs}.intermediate.dense", (*blocks, "mlp", "up"), width, config.mlp_dim, (i,))
        yield from linear(f"{theirs}.output.dense", (*blocks, "mlp", "down"), config.mlp_dim, width, (i,))
    yield from norm(f"{prefix}layernorm", (*path, "norm"), width)


def _classifier_entries(config: AstConfig) -> Iterator[Entry]:
    """Every key of an ASTForAudioClassification."""
    yield from _model_entries(config, prefix="audio_spectrogram_transformer.")
    yield from norm("classifier.layernorm", ("params", "head_norm"), config.width)
    yield from linear("classifier.dense", ("params", "head"), config.width, config.num_classes or 0)


def _archive_entries(config: AstConfig) -> Iterator[Entry]:
    """Every key of an archive of github.com/YuanGongND/ast, without the ``module.`` in front.

    Its Vision Transformer is timm's distilled DeiT, query, key and value in one product.
    """
    width, size, root = config.width, config.patch_size, ("params",)
    yield Entry("v.cls_token", (*root, "cls_token"), (1, 1, width))
    yield Entry("v.dist_token", (*root, "distillation_token"), (1, 1, width))
    num_positions = 2 + config.grid[0] * config.grid[1]
    yield Entry("v.pos_embed", (*root, "position_embed"), (1, num_positions, width))
    yield Entry("v.patch_embed.proj.weight", (*root, "patch_embed", "kernel"), (width, 1, size, size), "conv")
    yield Entry("v.patch_embed.proj.bias", (*root, "patch_embed", "bias"), (width,))
    blocks = (*root, "blocks")
    for i in range(config.num_layers):
        theirs = f"v.blocks.{i}"
        yield from norm(f"{theirs}.norm1", (*blocks, "attention_norm"), width, (i,))
        yield from linear(f"{theirs}.attn.qkv", (*blocks, "attention", "qkv"), width, 3 * width, (i,))
        yield from linear(f"{theirs}.attn.proj", (*blocks, "attention", "out"), width, width, (i,))
        yield from norm(f"{theirs}.norm2", (*blocks, "mlp_norm"), width, (i,))
        yield from linear(f"{theirs}.mlp.fc1", (*blocks, "mlp", "up"), width, config.mlp_dim, (i,))
        yield from linear(f"{theirs}.mlp.fc2", (*blocks, "mlp", "down"), config.mlp_dim, width, (i,))
    yield from norm("v.norm", (*root, "norm"), width)
    yield from norm("mlp_head.0", (*root, "head_norm"), width)
    yield from linear("mlp_head.1", (*root, "head"), width, config.num_classes or 0)


def read_ast_config(fields: Mapping[str, Any]) -> AstConfig:
    """config.json of an ASTModel or ASTForAudioClassification, absent fields at transformers' defaults."""
    fields = Fields.of(fields)
    fields.only({"hidden_act": "gelu", "qkv_bias": True}, "our AST")
    eps = fields.number("layer_norm_eps", 1e-12, above=0.0)
    has_head = "ASTForAudioClassification" in fields.words("architectures")
    num_labels = len(fields.section("id2label")) or fields.size("num_labels", 2)
    width, num_mels, num_frames = (
        fields.size("hidden_size", 768),
        fields.size("num_mel_bins", 128),
        fields.size("max_length", 1024),
    )
    patch_size = fields.size("patch_size", 16)
    if patch_size > min(num_mels, num_frames):
        raise fields.error(
            "patch_size", f"at most the {num_mels} mel bins and {num_frames} frames", patch_size
        )
    return AstConfig(
        num_frames=num_frames,
        num_mels=num_mels,
        patch_size=patch_size,
        time_stride=fields.size("time_stride", 10),
        frequency_stride=fields.size("frequency_stride", 10),
        width=width,
        num_layers=fields.size("num_hidden_layers", 12),
        num_heads=fields.divisor("num_attention_heads", 12, of=width),
        mlp_dim=fields.size("intermediate_size", 3072),
        layer_norm_eps=eps,
        num_classes=num_labels if has_head else None,
        head_norm_eps=eps,
    )


def write_ast_config(config: AstConfig) -> dict[str, Any]:
    """config.json of the model that computes what ``config`` computes.

    Raises:
        UserError: the classifier's LayerNorm has another epsilon than the rest, as in the authors' archives;
            transformers knows only one.
    """
    if config.num_classes is not None and config.head_norm_eps != config.layer_norm_eps:
        raise UserError(
            f"the classifier's epsilon is {config.head_norm_eps:g} and the backbone's {config.layer_norm_eps:g}; "
            "transformers has one for both: set head_norm_eps to layer_norm_eps, which moves the logits a little"
        )
    fields = {
        "model_type": "audio-spectrogram-transformer",
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": "gelu",
        "layer_norm_eps": config.layer_norm_eps,
        "patch_size": config.patch_size,
        "qkv_bias": True,
        "frequency_stride": config.frequency_stride,
        "time_stride": config.time_stride,
        "max_length": config.num_frames,
        "num_mel_bins": config.num_mels,
    }
    if config.num_classes is not None:
        names = [f"LABEL_{i}" for i in range(config.num_classes)]
        fields["id2label"] = {str(i): name for i, name in enumerate(names)}
        fields["label2id"] = {name: i for i, name in enumerate(names)}
    return fields


def infer_ast_config(shapes: Mapping[str, tuple[int, ...]]) -> AstConfig:
    """The config of an archive from its shapes: 128 mel bins, heads of 64, and one of the published grids."""
    width = shapes["v.cls_token"][-1]
    num_layers = 1 + max(int(key.split(".")[2]) for key in shapes if key.startswith("v.blocks."))
    num_patches = shapes["v.pos_embed"][1] - 2
    for stride in (10, 12, 14, 16):
        for num_frames in (1024, 512, 128):
            config = AstConfig(
                num_frames=num_frames,
                patch_size=shapes["v.patch_embed.proj.weight"][-1],
                time_stride=stride,
                frequency_stride=stride,
                width=width,
                num_layers=num_layers,
                num_heads=published_heads(width),
                mlp_dim=shapes["v.blocks.0.mlp.fc1.weight"][0],
                layer_norm_eps=1e-6,
                num_classes=shapes["mlp_head.1.weight"][0],
                head_norm_eps=1e-5,
            )
            if config.grid[0] * config.grid[1] == num_patches:
                return config
    raise UserError(
        f"{num_patches} positions are those of no published AST (1024, 512 or 128 frames, a patch every 10, 12, 14 or "
        "16): say the config"
    )


_ABSTRACT = functools.partial(family.abstract, FAMILY)
AST = Format(
    name="ast",
    config_type=AstConfig,
    abstract=_ABSTRACT,
    entries=_model_entries,
    architectures=("ASTModel",),
    read_config=read_ast_config,
    write_config=write_ast_config,
)
AST_CLASSIFIER = Format(
    name="ast-classifier",
    config_type=AstConfig,
    abstract=_ABSTRACT,
    entries=_classifier_entries,
    architectures=("ASTForAudioClassification",),
    read_config=read_ast_config,
    write_config=write_ast_config,
)
AST_ARCHIVE = Format(
    name="ast-archive",
    config_type=AstConfig,
    abstract=_ABSTRACT,
    entries=_archive_entries,
    infer_config=infer_ast_config,
    key_prefix="module.",
    signature="v.dist_token",
    # The image classifiers that DeiT came with.
    ignored=(r"v\.head(_dist)?\.(weight|bias)",),
)
FORMATS = (AST, AST_CLASSIFIER, AST_ARCHIVE)


def _parity(name: str, layout: Format, config: AstConfig, output: Literal["clip", "logits"]) -> Parity:
    def build(config: AstConfig) -> Any:
        import transformers

        # Their eager attention takes the softmax in float32 whatever the model is in.
        fields = write_ast_config(config) | {"attn_implementation": "sdpa"}
        model_type = fields.pop("model_type")
        return getattr(transformers, layout.architectures[0])(
            transformers.AutoConfig.for_model(model_type, **fields)
        ).eval()

    def inputs(config: AstConfig, real: RealInputs) -> dict[str, np.ndarray]:
        clip_sec = config.num_frames / 100
        clip = ClipSpec(clip_sec=clip_sec)
        spec = AstSpec(clip=clip, num_mels=config.num_mels, padded_frames=config.num_frames)
        waveforms = jnp.asarray(real.waveforms(spec.sample_rate_hz, clip_sec))
        return {"features": np.asarray(compute_features(waveforms, spec))}

    def ours(config: AstConfig, variables: PyTree, given: dict[str, jax.Array], dtype: Any) -> Any:
        return Ast(config, jnp.dtype(dtype), output).apply(variables, given["features"])

    key = "pooler_output" if output == "clip" else "logits"
    return Parity(
        name=name,
        layout=layout,
        config=config,
        oracle=build,
        oracle_name=f"transformers.{layout.architectures[0]}",
        inputs=inputs,
        ours=ours,
        theirs=lambda module, given: module(given["features"])[key],
    )


PARITY = (
    _parity("ast, nano", AST, NANO, "clip"),
    _parity("ast classifier, nano", AST_CLASSIFIER, dataclasses.replace(NANO, num_classes=10), "logits"),
)
