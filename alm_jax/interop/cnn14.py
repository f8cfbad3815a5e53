"""CNN14 as the archives of PANNs hold it (https://zenodo.org/records/3987831)."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.encoders import family
from alm_jax.encoders.audio.cnn14 import FAMILY, FRONTENDS, NANO, Cnn14, Cnn14Config
from alm_jax.interop.entry import Entry, Path, linear, norm
from alm_jax.interop.format import Format
from alm_jax.interop.parity import Parity, RealInputs, load_oracle
from alm_jax.interop.safetensors_io import Arrays
from alm_jax.ops.frontends import ClipSpec, compute_features
from alm_jax.types import PyTree


def _batch_norm(key: str, path: Path, size: int) -> Iterator[Entry]:
    yield from norm(key, ("params", *path), size)
    yield Entry(f"{key}.running_mean", ("batch_stats", *path, "mean"), (size,))
    yield Entry(f"{key}.running_var", ("batch_stats", *path, "var"), (size,))


def _entries(config: Cnn14Config) -> Iterator[Entry]:
    yield from _batch_norm("bn0", ("feature_norm",), config.num_mels)
    inputs = 1
    for i, channels in enumerate(config.channels):
        for j in range(2):
            key = f"conv_block{i + 1}.conv{j + 1}.weight"
            path = ("params", f"block{i}", f"conv{j}", "kernel")
            yield Entry(key, path, (channels, inputs, 3, 3), "conv")
            yield from _batch_norm(f"conv_block{i + 1}.bn{j + 1}", (f"block{i}", f"norm{j}"), channels)
            inputs = channels
    yield from linear("fc1", ("params", "embed"), config.width, config.width)
    if config.num_classes is not None:
        yield from linear("fc_audioset", ("params", "head"), config.width, config.num_classes)


def _counters(config: Cnn14Config) -> frozenset[str]:
    """Counts of batches, which are never used: PANNs' momentum is fixed."""
    norms = ["bn0"] + [f"conv_block{i + 1}.bn{j + 1}" for i in range(len(config.channels)) for j in range(2)]
    return frozenset(f"{key}.num_batches_tracked" for key in norms)


def _buffers(config: Cnn14Config) -> Arrays:
    return {key: np.zeros((), np.int64) for key in _counters(config)}


def infer_cnn14_config(shapes: Mapping[str, tuple[int, ...]]) -> Cnn14Config:
    """The config of an archive from its shapes."""
    num_blocks = sum(key.startswith("conv_block") and key.endswith("conv1.weight") for key in shapes)
    head = shapes.get("fc_audioset.bias")
    return Cnn14Config(
        num_mels=shapes["bn0.weight"][0],
        channels=tuple(shapes[f"conv_block{i + 1}.conv2.weight"][0] for i in range(num_blocks)),
        num_classes=None if head is None else head[0],
    )


CNN14_ARCHIVE = Format(
    name="cnn14-archive",
    config_type=Cnn14Config,
    abstract=functools.partial(family.abstract, FAMILY),
    entries=_entries,
    buffers=_buffers,
    unread=_counters,
    infer_config=infer_cnn14_config,
    archive_entry=("model",),
    signature="conv_block1.conv1.weight",
    # The front-end, which is not part of the encoder.
    ignored=(r"spectrogram_extractor\.stft\.conv_(real|imag)\.weight", r"logmel_extractor\.melW"),
)
FORMATS = (CNN14_ARCHIVE,)


def _parity(name: str, config: Cnn14Config, output: Any) -> Parity:
    def inputs(config: Cnn14Config, real: RealInputs) -> dict[str, np.ndarray]:
        spec = dataclasses.replace(FRONTENDS["16k"], clip=ClipSpec(clip_sec=2.0), num_mels=config.num_mels)
        waveforms = jnp.asarray(real.waveforms(spec.sample_rate_hz, spec.clip.clip_sec))
        return {"features": np.asarray(compute_features(waveforms, spec))}

    def ours(config: Cnn14Config, variables: PyTree, given: dict[str, jax.Array], dtype: Any) -> Any:
        return Cnn14(config, jnp.dtype(dtype), output).apply(variables, given["features"])

    return Parity(
        name=name,
        layout=CNN14_ARCHIVE,
        config=config,
        oracle=lambda config: load_oracle("cnn14").build(config),
        oracle_name="tests/oracles/cnn14.py",
        inputs=inputs,
        ours=ours,
        theirs=lambda module, given: module(given["features"])[output],
    )


PARITY = (
    _parity("cnn14, nano", NANO, "clip"),
    _parity("cnn14 classifier, nano", dataclasses.replace(NANO, num_classes=10), "logits"),
)
