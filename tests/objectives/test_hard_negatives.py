"""Training with captions that are wrong: whole towers, micro-batches, many devices, and what is refused.

Two steps of the default suite are in test_contrastive_losses.py, on towers that are matrices.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_batches import make_batch

from alm_jax import batch as contract
from alm_jax.errors import DataError, UserError
from alm_jax.objectives import build_objective
from alm_jax.objectives.contrastive_losses import Computation, HardNegativesConfig
from alm_jax.training.accumulation import loss_and_gradients
from alm_jax.training.mesh import MeshConfig, build_mesh
from alm_jax.training.parallel import PMAP_AXIS, JitParallel, PmapParallel
from alm_jax.training.state import init_state
from alm_jax.training.step import build_train_step

ROWS, NUM_PADDING, NEGATIVES, RATE = 16, 3, 2, 0.1


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    """A batch in which row 0 has no negative caption and row 1 has one."""
    plain = make_batch(ROWS, num_padding=NUM_PADDING)
    rng = np.random.default_rng(1)
    shape = (ROWS, NEGATIVES, plain["text_ids"].shape[1])
    present = plain["mask"][:, None] & (np.arange(NEGATIVES) < np.arange(ROWS)[:, None])
    mask = present[:, :, None] & (np.arange(shape[2]) < 5)
    found = plain | {
        "negative_ids": np.where(mask, rng.integers(5, 64, shape), 1).astype(np.int32),
        "negative_mask": mask,
    }
    contract.validate(found)
    return found


@pytest.fixture(scope="module")
def config(objective_config):
    return dataclasses.replace(
        objective_config, loss=HardNegativesConfig(computation=Computation(impl="ring", tile=2))
    )


def build(config, mode: str, **options):
    """Plain gradient descent: the step of a parameter is its gradient."""
    objective, optimizer = build_objective(config), optax.sgd(RATE)
    init = functools.partial(init_state, objective, optimizer, 0, with_ema=True)
    step = functools.partial(
        build_train_step, objective, optimizer, schedule=lambda step: RATE, ema_decay=0.9, **options
    )
    if mode == "pmap":
        return PmapParallel(init, step(axis_name=PMAP_AXIS))
    mesh = (
        build_mesh(MeshConfig(data=4, fsdp=2))
        if mode == "mesh"
        else build_mesh(MeshConfig(), jax.devices()[:1])
    )
    return JitParallel(init, step(), objective, mesh)


def train(parallel, batch):
    """Losses of two steps, and the parameters after them."""
    state, losses = parallel.init(), []
    for _ in range(2):
        state, metrics = parallel.step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(parallel.unplaced(state).params)


@pytest.fixture(scope="module")
def on_a_mesh(config, batch):
    return train(build(config, "mesh", num_microbatches=2), batch)


def formula(objective, variables, batch) -> float:
    """The loss of the embeddings in float64 (arXiv 2310.08753, eq. 4 and 5)."""
    inputs = objective.prepare(jax.tree.map(jnp.asarray, batch), jax.random.key(1), train=True)
    (audio, texts), _ = objective.encode(variables, inputs, jax.random.key(2), train=True)
    real = batch["mask"]
    audio, texts = np.asarray(audio, np.float64)[real], np.asarray(texts, np.float64)[real]
    logits = audio @ texts[:, 0].T / 0.07
    own = np.where(
        batch["negative_mask"].any(-1)[real], np.einsum("be,bke->bk", audio, texts[:, 1:]) / 0.07, -np.inf
    )
    rows = np.log(np.exp(np.concatenate([logits, own], axis=1)).sum(1)) - np.diag(logits)
    columns = np.log(np.exp(logits).sum(0)) - np.diag(logits)
    return float((rows + columns).mean() / 2)


@pytest.mark.slow
def test_two_steps_in_micro_batches_on_a_mesh_lower_the_loss_of_the_formula(config, batch, on_a_mesh):
    losses, _ = on_a_mesh
    objective = build_objective(config)
    variables = jax.device_get(build(config, "mesh").init().variables)
    # Run operation by operation, this would cost as much as the training.
    encode = jax.jit(functools.partial(objective.encode, train=True))
    compiled = dataclasses.replace(objective, encode=lambda *args, train: encode(*args))
    assert losses[0] == pytest.approx(formula(compiled, variables, batch), abs=2e-5)
    assert losses[1] < losses[0] - 0.01


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["one device", "pmap"])
def test_one_device_and_pmap_train_as_the_mesh(config, batch, on_a_mesh, mode):
    losses, params = train(build(config, mode), batch)
    np.testing.assert_allclose(losses, on_a_mesh[0], rtol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), params, on_a_mesh[1])


def test_a_batch_without_negatives_is_refused(config, batch):
    plain = {key: value for key, value in batch.items() if key in contract.SPEC}
    objective = build_objective(config)
    variables = jax.eval_shape(objective.init, jax.random.key(0))
    with pytest.raises(UserError, match=r"set data\.num_negatives"):
        jax.eval_shape(functools.partial(loss_and_gradients, objective), variables, plain, jax.random.key(0))


def test_one_of_the_two_keys_alone_is_no_batch(batch):
    with pytest.raises(DataError, match=r"missing keys \['negative_mask'\]"):
        contract.validate({key: value for key, value in batch.items() if key != "negative_mask"})
    with pytest.raises(DataError, match="another key has"):
        contract.validate(batch | {"negative_mask": batch["negative_mask"][:, :1]})
