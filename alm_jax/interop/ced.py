"""CED as the archives of github.com/RicherMans/CED hold it (https://zenodo.org/records/8275347)."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.encoders import family
from alm_jax.encoders.audio.ced import FAMILY, NANO, Ced, CedConfig
from alm_jax.interop.entry import Entry, Path, linear, norm
from alm_jax.interop.format import Format
from alm_jax.interop.parity import Parity, RealInputs, load_oracle
from alm_jax.interop.shapes import published_heads
from alm_jax.ops.frontends import CedSpec, ClipSpec, compute_features
from alm_jax.types import PyTree

_COUNTER = "init_bn.1.num_batches_tracked"


def _entries(config: CedConfig) -> Iterator[Entry]:
    width, size, root = config.width, config.patch_size, ("params",)
    bands, columns = config.grid
    # The norm is between two layers that only move axes.
    yield from norm("init_bn.1", (*root, "feature_norm"), config.num_mels)
    stats: Path = ("batch_stats", "feature_norm")
    yield Entry("init_bn.1.running_mean", (*stats, "mean"), (config.num_mels,))
    yield Entry("init_bn.1.running_var", (*stats, "var"), (config.num_mels,))
    yield Entry("patch_embed.proj.weight", (*root, "patch_embed", "kernel"), (width, 1, size, size), "conv")
    yield Entry("patch_embed.proj.bias", (*root, "patch_embed", "bias"), (width,))
    yield Entry("time_pos_embed", (*root, "time_embed"), (1, width, 1, columns))
    yield Entry("freq_pos_embed", (*root, "frequency_embed"), (1, width, bands, 1))
    blocks = (*root, "blocks")
    for i in range(config.num_layers):
        theirs = f"blocks.{i}"
        yield from norm(f"{theirs}.norm1", (*blocks, "attention_norm"), width, (i,))
        yield from linear(f"{theirs}.attn.qkv", (*blocks, "attention", "qkv"), width, 3 * width, (i,))
        yield from linear(f"{theirs}.attn.proj", (*blocks, "attention", "out"), width, width, (i,))
        yield from norm(f"{theirs}.norm2", (*blocks, "mlp_norm"), width, (i,))
        yield from linear(f"{theirs}.mlp.fc1", (*blocks, "mlp", "up"), width, config.mlp_dim, (i,))
        yield from linear(f"{theirs}.mlp.fc2", (*blocks, "mlp", "down"), config.mlp_dim, width, (i,))
    yield from norm("norm", (*root, "norm"), width)
    if config.num_classes is not None:
        yield from norm("outputlayer.0", (*root, "head_norm"), width)
        yield from linear("outputlayer.1", (*root, "head"), width, config.num_classes)


def infer_ced_config(shapes: Mapping[str, tuple[int, ...]]) -> CedConfig:
    """The config of an archive from its shapes: heads of 64, and chunks of 1012 frames where 63 patches fit in."""
    width, _, size, _ = shapes["patch_embed.proj.weight"]
    columns = shapes["time_pos_embed"][-1]
    layers = {key.split(".")[1] for key in shapes if key.startswith("blocks.")}
    head = shapes.get("outputlayer.1.bias")
    frames = CedConfig.chunk_frames
    return CedConfig(
        chunk_frames=frames if frames // size == columns else size * columns,
        num_mels=shapes["init_bn.1.weight"][0],
        patch_size=size,
        width=width,
        num_layers=len(layers),
        num_heads=published_heads(width),
        mlp_dim=shapes["blocks.0.mlp.fc1.weight"][0],
        num_classes=None if head is None else head[0],
        compat=True,
    )


CED_ARCHIVE = Format(
    name="ced-archive",
    config_type=CedConfig,
    abstract=functools.partial(family.abstract, FAMILY),
    entries=_entries,
    buffers=lambda _: {_COUNTER: np.zeros((), np.int64)},
    unread=lambda _: frozenset({_COUNTER}),
    infer_config=infer_ced_config,
    signature="freq_pos_embed",
    # The front-end's window and mel bank, buffers of torchaudio's.
    ignored=(r"front_end\.0\.(mel_scale\.fb|spectrogram\.window)",),
)
FORMATS = (CED_ARCHIVE,)


def _parity(name: str, config: CedConfig, output: Any, seconds: float) -> Parity:
    def inputs(config: CedConfig, real: RealInputs) -> dict[str, np.ndarray]:
        spec = CedSpec(clip=ClipSpec(clip_sec=seconds), num_mels=config.num_mels)
        waveforms = jnp.asarray(real.waveforms(spec.sample_rate_hz, seconds))
        return {"features": np.asarray(compute_features(waveforms, spec))}

    def ours(config: CedConfig, variables: PyTree, given: dict[str, jax.Array], dtype: Any) -> Any:
        return Ced(config, jnp.dtype(dtype), output).apply(variables, given["features"])

    return Parity(
        name=name,
        layout=CED_ARCHIVE,
        config=config,
        oracle=lambda config: load_oracle("ced").build(config),
        oracle_name="tests/oracles/ced.py",
        inputs=inputs,
        ours=ours,
        theirs=lambda module, given: module(given["features"])[output],
    )


PARITY = (
    _parity("ced, one chunk, nano", NANO, "tokens", 1.0),
    _parity("ced classifier, three chunks, nano", dataclasses.replace(NANO, num_classes=10), "logits", 3.5),
)
