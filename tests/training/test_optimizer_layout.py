"""Every optimizer trains the same over a mesh as on one device, and its large arrays are cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.objectives import Objective
from alm_jax.objectives.objective import Inputs, Loss
from alm_jax.training.build import build_parallel
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.mesh import MeshConfig, build_mesh
from alm_jax.training.optimizer import OptimizerConfig

SHAPE = (256, 128)
OPTIMIZERS = OptimizerConfig.kinds()


def linear_objective() -> Objective:
    """The mean square of x W + b: a matrix, and a vector, which no optimizer treats as one."""
    return Objective(
        init=lambda key: {
            "params": {"layer": {"kernel": jax.random.normal(key, SHAPE), "bias": jnp.zeros(SHAPE[1])}},
            "batch_stats": {},
        },
        axes=lambda: {"layer": {"kernel": ("embed", "mlp"), "bias": ("mlp",)}},
        prepare=lambda batch, key, *, train: Inputs(batch["x"], None),
        encode=lambda variables, inputs, key, *, train: (
            inputs.rows @ variables["params"]["layer"]["kernel"] + variables["params"]["layer"]["bias"][None],
            {},
        ),
        combine=lambda params, outputs, batch, key: (
            Loss(jnp.sum(outputs**2), jnp.float32(outputs.size)),
            {},
        ),
        project=lambda params: params,
    )


def train(config: OptimizerConfig, mesh_config: MeshConfig, devices=None):
    # An average, since under the tests' type checks JAX cannot lay out a state without one.
    training = TrainingConfig(num_steps=10, batch_size=16, mesh=mesh_config, ema_decay=0.9)
    mesh = build_mesh(mesh_config, devices)
    parallel = build_parallel(linear_objective(), config, training, seed=0, mesh=mesh)
    state, losses = parallel.init(), []
    for _ in range(3):
        x = np.random.default_rng(0).normal(size=(16, SHAPE[0])).astype(np.float32)
        state, metrics = parallel.step(state, {"x": x})
        losses.append(float(metrics["loss"]))
    return losses, state


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_a_mesh_changes_nothing_and_cuts_what_is_large(kind):
    config = kind(warmup_steps=0, peak_lr=1e-2)
    whole, one = train(config, MeshConfig(), jax.devices()[:1])
    cut, state = train(config, MeshConfig(data=2, fsdp=2, tensor=2))
    np.testing.assert_allclose(cut, whole, rtol=1e-5)
    assert whole[-1] < whole[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        jax.device_get(state.params),
        jax.device_get(one.params),
    )
    large = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == SHAPE]
    assert all(leaf.addressable_shards[0].data.size == leaf.size // 8 for leaf in large)
    assert (
        len(large)
        == {"AdamWConfig": 2, "AdafactorConfig": 0, "LionConfig": 1, "MuonConfig": 1}[kind.__name__]
    )
