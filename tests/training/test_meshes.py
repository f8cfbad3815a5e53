"""Every objective trains on two devices as on one, whichever axis of the mesh they are."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from alm_jax.bench.step import build, example_batch
from alm_jax.run.experiment import load_config
from alm_jax.training import sharding
from alm_jax.training.mesh import MeshConfig, build_mesh

NUM_STEPS = 10
TINY = {path.stem: path for path in sorted((Path(__file__).parents[1] / "cli").glob("tiny_*.py"))}
QUICK = {("tiny_language_modeling", "fsdp")}
"""In the default suite; the others are slow ones."""


@functools.cache
def losses(name: str, axis: str | None) -> list[float]:
    """Of ten steps on one device, or on two along ``axis``."""
    config = load_config(TINY[name])
    sizes = {"data": 1} | ({axis: 2} if axis else {})
    mesh = MeshConfig(**sizes)
    training = dataclasses.replace(config.training, batch_size=8, num_microbatches=1, mesh=mesh)
    config = dataclasses.replace(config, training=training)
    parallel = build(config, build_mesh(mesh, jax.devices()[: 2 if axis else 1]))
    state, batch, found = parallel.init(), example_batch(config), []
    for _ in range(NUM_STEPS):
        state, metrics = parallel.step(state, batch)
        found.append(float(metrics["loss"]))
    return found


@pytest.mark.parametrize(
    ("name", "axis"),
    [
        pytest.param(name, axis, marks=[] if (name, axis) in QUICK else pytest.mark.slow)
        for name in TINY
        for axis in ("data", "fsdp", "tensor")
    ],
)
def test_two_devices_train_as_one(name, axis, monkeypatch):
    # Tables of positions and norms are no small part of models so small.
    monkeypatch.setattr(sharding, "MAX_REPLICATED_FRACTION", 1.0)
    one = losses(name, None)
    assert len(set(one)) == NUM_STEPS
    np.testing.assert_allclose(losses(name, axis), one, rtol=1e-5)
