"""Moments and averages cut over ``data``: the same run, and each device keeps its part alone."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from training_batches import make_batch

from alm_jax.objectives import build_objective
from alm_jax.training import sharding
from alm_jax.training.build import build_parallel
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.mesh import AXES, MeshConfig, build_mesh
from alm_jax.training.optimizer import AdamWConfig


def train(objective_config, *, clip_norm: float, num_steps: int):
    """The last state of a run on eight devices along ``data``, and bytes of the moments on one of them."""
    training = TrainingConfig(num_steps=100, batch_size=16, mesh=MeshConfig(data=8), ema_decay=0.9)
    optimizer = AdamWConfig(warmup_steps=1, peak_lr=1e-3, clip_norm=clip_norm)
    mesh = build_mesh(training.mesh)
    parallel = build_parallel(build_objective(objective_config), optimizer, training, seed=0, mesh=mesh)
    state = parallel.init()
    for step in range(num_steps):
        state, _ = parallel.step(state, make_batch(16, num_padding=3, seed=step))
    held = sum(
        leaf.addressable_shards[0].data.nbytes
        for leaf in jax.tree.leaves((state.opt_state, state.ema_params))
    )
    return jax.device_get(dataclasses.replace(state, num_skipped=None)), held


@pytest.mark.parametrize(
    ("clip_norm", "num_steps", "tolerance"),
    [(0.0, 3, 0.0), pytest.param(1.0, 20, 1e-6, marks=pytest.mark.slow)],
)
def test_a_cut_update_is_the_whole_one(objective_config, monkeypatch, clip_norm, num_steps, tolerance):
    monkeypatch.setattr(sharding, "MIN_SPREAD_SIZE", 2**40)
    whole, held_whole = train(objective_config, clip_norm=clip_norm, num_steps=num_steps)
    monkeypatch.setattr(sharding, "MIN_SPREAD_SIZE", 64)
    cut, held_cut = train(objective_config, clip_norm=clip_norm, num_steps=num_steps)
    assert held_cut < 0.25 * held_whole
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance),
        (cut.params, cut.ema_params),
        (whole.params, whole.ema_params),
    )


def test_the_largest_dimension_that_allows_it_is_cut():
    mesh = AbstractMesh((4, 2, 1), AXES, axis_types=(AxisType.Auto,) * 3)
    assert sharding.spread_spec(P(None, "fsdp"), (12, 4096), mesh) == P(None, ("fsdp", "data"))
    # Half of 4,100 numbers do not divide by 4; 12 layers do.
    assert sharding.spread_spec(P(None, "fsdp"), (12, 4100), mesh) == P("data", "fsdp")
    assert sharding.spread_spec(P(None, None), (999, 333), mesh) == P(None, None)
    assert sharding.spread_spec(P(None), (8,), mesh) == P(None)
