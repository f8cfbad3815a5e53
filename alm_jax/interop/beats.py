"""BEATs as the archives of github.com/microsoft/unilm/tree/master/beats hold it."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.encoders import family
from alm_jax.encoders.audio.beats import FAMILY, NANO, Beats, BeatsConfig
from alm_jax.interop.entry import Entry, Path, embedding, fused_qkv, linear, norm
from alm_jax.interop.format import Format
from alm_jax.interop.parity import Parity, RealInputs, load_oracle
from alm_jax.ops.frontends import BeatsSpec, ClipSpec, compute_features
from alm_jax.types import PyTree


def _entries(config: BeatsConfig) -> Iterator[Entry]:
    width, size, patch_width = config.width, config.patch_size, config.patch_width
    root: Path = ("params",)
    shape: tuple[int, ...] = (patch_width, 1, size, size)
    yield Entry("patch_embedding.weight", (*root, "patch_embed", "kernel"), shape, "transposed")
    yield from norm("layer_norm", (*root, "patch_norm"), patch_width)
    if patch_width != width:
        yield from linear("post_extract_proj", (*root, "projection"), patch_width, width)
    theirs, ours, window = "encoder.pos_conv.0", (*root, "position_conv"), config.position_window
    yield Entry(f"{theirs}.weight_g", (*ours, "gain"), (1, 1, window))
    shape = (width, width // config.position_groups, window)
    yield Entry(f"{theirs}.weight_v", (*ours, "kernel"), shape, "conv")
    yield Entry(f"{theirs}.bias", (*ours, "bias"), (width,))
    yield from norm("encoder.layer_norm", (*root, "norm"), width)
    # One table, which every layer of theirs holds: `_copies`.
    yield from embedding(_bias_key(0), (*root, "relative_bias"), config.num_buckets, config.num_heads)
    blocks, head_dim = (*root, "blocks"), width // config.num_heads
    for i in range(config.num_layers):
        theirs = f"encoder.layers.{i}"
        query, key, value = (f"{theirs}.self_attn.{name}_proj" for name in "qkv")
        attention = (*blocks, "attention")
        yield from fused_qkv((query, key, value), (*attention, "qkv"), width, width, (i,))
        yield from linear(f"{theirs}.self_attn.out_proj", (*attention, "out"), width, width, (i,))
        yield from linear(f"{theirs}.self_attn.grep_linear", (*attention, "gate"), head_dim, 8, (i,))
        shape = (1, config.num_heads, 1, 1)
        yield Entry(f"{theirs}.self_attn.grep_a", (*attention, "gate_scale"), shape, index=(i,))
        yield from norm(f"{theirs}.self_attn_layer_norm", (*blocks, "attention_norm"), width, (i,))
        yield from linear(f"{theirs}.fc1", (*blocks, "mlp", "up"), width, config.mlp_dim, (i,))
        yield from linear(f"{theirs}.fc2", (*blocks, "mlp", "down"), config.mlp_dim, width, (i,))
        yield from norm(f"{theirs}.final_layer_norm", (*blocks, "mlp_norm"), width, (i,))
    if config.num_classes is not None:
        yield from linear("predictor", (*root, "head"), width, config.num_classes)


def _bias_key(layer: int) -> str:
    return f"encoder.layers.{layer}.self_attn.relative_attention_bias"


def infer_beats_config(shapes: Mapping[str, tuple[int, ...]]) -> BeatsConfig:
    """The config of an archive from its shapes.

    Values that shapes do not determine are those of every released model: the front-end's 128 mel bins, a
    ``max_distance`` of 800, DeepNorm, norms after each half. The mask is the released code's (``compat``).
    """
    patch_width, _, size, _ = shapes["patch_embedding.weight"]
    width, group_size, window = shapes["encoder.pos_conv.0.weight_v"]
    num_buckets, num_heads = shapes[f"{_bias_key(0)}.weight"]
    layers = {key.split(".")[2] for key in shapes if key.startswith("encoder.layers.")}
    head = shapes.get("predictor.bias")
    return BeatsConfig(
        patch_size=size,
        patch_width=patch_width,
        width=width,
        num_layers=len(layers),
        num_heads=num_heads,
        mlp_dim=shapes["encoder.layers.0.fc1.weight"][0],
        position_window=window,
        position_groups=width // group_size,
        num_buckets=num_buckets,
        num_classes=None if head is None else head[0],
        compat=True,
    )


BEATS_ARCHIVE = Format(
    name="beats-archive",
    config_type=BeatsConfig,
    abstract=functools.partial(family.abstract, FAMILY),
    entries=_entries,
    copies=lambda config: {
        f"{_bias_key(i)}.weight": f"{_bias_key(0)}.weight" for i in range(1, config.num_layers)
    },
    infer_config=infer_beats_config,
    archive_entry=("model",),
    signature="encoder.layers.0.self_attn.grep_a",
)
FORMATS = (BEATS_ARCHIVE,)


def _parity(name: str, config: BeatsConfig, output: Any, *, masked: bool = False) -> Parity:
    def inputs(config: BeatsConfig, real: RealInputs) -> dict[str, np.ndarray]:
        spec = BeatsSpec(clip=ClipSpec(clip_sec=2.0), num_mels=config.num_mels)
        waveforms = jnp.asarray(real.waveforms(spec.sample_rate_hz, spec.clip.clip_sec))
        features = np.asarray(compute_features(waveforms, spec))
        mask = np.arange(features.shape[1])[None] < np.array([[features.shape[1]], [100]])
        return {"features": features} | ({"mask": mask} if masked else {})

    def ours(config: BeatsConfig, variables: PyTree, given: dict[str, jax.Array], dtype: Any) -> Any:
        module = Beats(config, jnp.dtype(dtype), output)
        return module.apply(variables, given["features"], mask=given.get("mask"))

    return Parity(
        name=name,
        layout=BEATS_ARCHIVE,
        config=config,
        oracle=lambda config: load_oracle("beats").build(config),
        oracle_name="tests/oracles/beats.py",
        inputs=inputs,
        ours=ours,
        theirs=lambda module, given: module(given["features"], given.get("mask"))[output],
    )


PARITY = (
    _parity("beats, nano", NANO, "tokens"),
    _parity(
        "beats classifier, padded, nano",
        dataclasses.replace(NANO, num_classes=10, compat=True),
        "logits",
        masked=True,
    ),
)
