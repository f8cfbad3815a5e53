"""The GPU kernel, interpreted on the CPU, against float64 NumPy; and compiled for an H100 that is not there."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

# The interpreter of GPU kernels has no public name yet.
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
from jax.sharding import SingleDeviceSharding

from alm_jax.bench.topology import compile_for, resolve
from alm_jax.losses.contrastive import kernel, kernel_gpu, tiles
from alm_jax.losses.sums import LogSumExp

H100 = "NVIDIA H100 80GB HBM3"


def make_emb(rng: np.random.Generator, size: int, width: int, padding: int) -> tuple[Any, Any]:
    emb = rng.standard_normal((size, width))
    emb /= np.linalg.norm(emb, axis=1, keepdims=True)
    ids = np.arange(size)
    emb[size - padding :], ids[size - padding :] = 0, -1
    return jnp.asarray(emb, jnp.bfloat16), jnp.asarray(ids)


def log_sum_exp(x: np.ndarray, axis: int) -> np.ndarray:
    peak = x.max(axis=axis, keepdims=True)
    return np.log(np.exp(x - peak).sum(axis)) + peak.squeeze(axis)


def test_the_kernel_equals_the_formula(monkeypatch):
    # Two groups of a tile of rows each, two stretches of two tiles of columns, of which the last is padding.
    monkeypatch.setattr(kernel_gpu, "ROW_TILES", 1)
    monkeypatch.setattr(kernel_gpu, "THREAD_BLOCKS", 2)
    rng = np.random.default_rng(0)
    audio, audio_ids = make_emb(rng, 200, 128, 3)
    text, text_ids = make_emb(rng, 300, 128, 5)
    # So that the zero logits of padding would be seen in the sums.
    scale = 30.0
    logits = scale * np.asarray(audio, np.float64) @ np.asarray(text, np.float64).T
    rows = log_sum_exp(logits[:, np.asarray(text_ids) >= 0], 1)[:-3]
    cols = log_sum_exp(logits[np.asarray(audio_ids) >= 0], 0)[:-5]

    before = [LogSumExp(jnp.full(size, 1.5), jnp.full(size, 2.0)) for size in (200, 300)]
    pairs = (audio, text, jnp.float32(scale), audio_ids, text_ids)
    interpret = InterpretGPUParams(detect_races=True)
    have = jax.jit(lambda *x: kernel_gpu.block_statistics(*x, interpret=interpret))(*pairs, *before)

    both = (np.logaddexp(want, 1.5 + np.log(2)) for want in (rows, cols))
    for actual, desired, padding in zip(have, both, (3, 5), strict=True):
        # Measured 2e-6.
        np.testing.assert_allclose(actual.value()[:-padding], desired, rtol=1e-6, atol=1e-5)
        assert np.isfinite(actual.value()).all()
    assert not gpu_callbacks.get_races().races_found


@pytest.mark.parametrize(
    ("device", "dtype", "width", "runs"),
    [
        (H100, "bfloat16", 512, True),
        ("NVIDIA H200", "bfloat16", 768, True),
        (H100, "float32", 512, False),
        (H100, "bfloat16", 100, False),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 512, False),
    ],
)
def test_hopper_runs_the_kernel_and_others_xla_tiles(device, dtype, width, runs, monkeypatch):
    called = []

    def record(name: str) -> Any:
        return lambda *args, **_: (called.append(name), args[5:7])[1]

    monkeypatch.setattr(kernel, "device_kind", lambda: device)
    monkeypatch.setattr(kernel_gpu, "block_statistics", record("kernel"))
    monkeypatch.setattr(tiles, "tile_statistics", record("tiles"))
    emb, ids, empty = jnp.zeros((8, width), dtype), jnp.arange(8), LogSumExp.empty(8)
    kernel.tile_statistics(emb, emb, jnp.float32(1), ids, ids, empty, empty, tile=8)
    assert called == ["kernel" if runs else "tiles"]


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="JAX's CUDA plugin is not installed (extra `cuda`)",
)
@pytest.mark.parametrize("width", [128, 512, 768])
def test_the_kernel_compiles_for_an_h100(width):
    topology = resolve("h100:1")

    def shape(*shape: int, dtype: str = "float32") -> Any:
        sharding = SingleDeviceSharding(topology.devices[0])
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)

    num_rows, num_cols = 8192, 10_000
    emb = (shape(num_rows, width, dtype="bfloat16"), shape(num_cols, width, dtype="bfloat16"))
    ids = (shape(num_rows, dtype="int32"), shape(num_cols, dtype="int32"))
    sums = [LogSumExp(shape(size), shape(size)) for size in (num_rows, num_cols)]
    compiled = compile_for(jax.jit(kernel_gpu.block_statistics).lower(*emb, shape(), *ids, *sums), topology)
    assert compiled.error is None
    assert compiled.text is not None
    assert "mosaic_gpu" in compiled.text
    # The padded texts and their transpose, and a group's sums: no logits, which would take 312 MiB.
    assert compiled.memory is not None
    assert compiled.memory.temp_bytes < 2 * 2 * num_cols * width * 1.5 + 2**25
