"""Every loss of the contrastive objective in training: it falls; micro-batches on eight devices equal the whole batch.

The towers are two matrices here; what the losses need of the rest is compiled in test_accumulation.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alm_jax.errors import UserError
from alm_jax.objectives import Objective, build_objective
from alm_jax.objectives.contrastive import read_texts
from alm_jax.objectives.contrastive_losses import (
    Computation,
    HardNegativesConfig,
    InfoNceConfig,
    MultiPositiveConfig,
    RetrievalConfig,
    SigmoidConfig,
    TauTemperature,
    contrastive_loss,
    init_scalars,
)
from alm_jax.objectives.objective import Inputs
from alm_jax.training.accumulation import loss_and_gradients
from alm_jax.training.mesh import MeshConfig, build_mesh
from alm_jax.training.sharding import place_batch
from alm_jax.training.state import init_state
from alm_jax.training.step import build_train_step

ROWS, WIDTH, NEGATIVES, RATE = 48, 6, 3, 0.02
RING = Computation(impl="ring", tile=2)
LOSSES = {
    "infonce": InfoNceConfig(computation=RING),
    "tau": InfoNceConfig(temperature=TauTemperature(), computation=Computation(tile=2)),
    "bfloat16": InfoNceConfig(computation=Computation(impl="chunked", tile=2, products="bfloat16")),
    "recording": MultiPositiveConfig(computation=RING),
    "label": MultiPositiveConfig(group="label", computation=Computation(impl="grid", tile=2)),
    "hard negatives": HardNegativesConfig(computation=RING),
    "hard negatives by recording": HardNegativesConfig(
        group="recording", computation=Computation(impl="grid", tile=2)
    ),
    "retrieval": RetrievalConfig(direction="audio_to_text"),
    "sigmoid": SigmoidConfig(computation=RING),
    "sigmoid by label": SigmoidConfig(group="label", computation=Computation(impl="grid", tile=2)),
}


def make_batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    real = np.arange(ROWS) < ROWS - 5
    texts = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    present = np.arange(NEGATIVES) < np.minimum(np.arange(ROWS), NEGATIVES)[:, None]
    return {
        "audio": rng.standard_normal((ROWS, WIDTH)).astype(np.float32),
        "text_ids": texts,
        # Nearly the texts themselves; a few rows have fewer, and one has none.
        "negative_ids": (texts[:, None] + 0.3 * rng.standard_normal((ROWS, NEGATIVES, WIDTH))).astype(
            np.float32
        ),
        "negative_mask": np.broadcast_to(present[:, :, None], (ROWS, NEGATIVES, WIDTH)),
        "mask": real,
        "index": np.where(real, np.arange(ROWS) // 2, -1).astype(np.int32),
        "label": np.where(real, np.arange(ROWS) % 4 - 1, -1).astype(np.int32),
    }


def two_matrices(config, loss) -> Objective:
    """The contrastive objective with this loss, its towers matrices and normalisation."""

    def init(key):
        kernels = jax.random.normal(key, (2, WIDTH, WIDTH))
        return {
            "params": {"audio": kernels[0], "text": kernels[1], **init_scalars(loss)},
            "batch_stats": {},
        }

    def prepare(batch, key, *, train, axis_name=None):
        return Inputs((batch["audio"], read_texts(loss, batch | {"text_mask": batch["text_ids"]})[0]), None)

    def encode(variables, inputs, key, *, train):
        feats = [
            x @ variables["params"][name] for x, name in zip(inputs.rows, ("audio", "text"), strict=True)
        ]
        return tuple(x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in feats), {}

    return dataclasses.replace(
        build_objective(dataclasses.replace(config, loss=loss)),
        init=init,
        prepare=prepare,
        encode=encode,
    )


SLOW = ("bfloat16", "hard negatives by recording", "recording", "sigmoid by label", "tau")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in LOSSES]
)
def test_training_lowers_the_loss_and_microbatches_equal_the_whole(name, objective_config):
    """Plain gradient descent, so that the step of a parameter is its gradient."""
    objective = two_matrices(objective_config, LOSSES[name])
    optimizer = optax.sgd(RATE)
    state = init_state(objective, optimizer, 0, with_ema=False)
    loss = LOSSES[name]
    if not isinstance(loss, RetrievalConfig):  # which has one form
        loss = dataclasses.replace(loss, computation=Computation(impl="reference"))
    plain = two_matrices(objective_config, loss)
    batch = make_batch()
    whole = jax.jit(functools.partial(loss_and_gradients, plain))
    want_loss, want_grads, _, _ = whole(state.variables, batch, jax.random.key(1))

    mesh = build_mesh(MeshConfig(data=4, fsdp=2))
    step = jax.jit(build_train_step(objective, optimizer, schedule=lambda step: RATE, num_microbatches=3))
    with jax.set_mesh(mesh):
        placed = place_batch(batch, mesh)
        first, metrics = step(state, placed)
        _, later = step(first, placed)
    # Sums over 43 x 43 pairs in another order; bfloat16 rounds the embeddings to 8 bits.
    tolerance = 2e-2 if name == "bfloat16" else 1e-5
    np.testing.assert_allclose(metrics["loss"], want_loss, rtol=tolerance)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want_grads))
    compared = set(want_grads) - ({"log_logit_scale"} if name == "tau" else set())  # which follows tau
    for key in compared:
        grad = (np.asarray(state.params[key]) - np.asarray(first.params[key])) / RATE
        np.testing.assert_allclose(grad, want_grads[key], atol=2 * tolerance * largest, err_msg=key)
    assert np.isfinite(later["loss"])
    assert later["loss"] < metrics["loss"]


@pytest.mark.parametrize("direction", ["text_to_audio", "audio_to_text"])
def test_retrieval_is_the_survey_s_formula_in_one_direction(direction):
    """L_atr = -sum_i log( exp S(i, p_i) / sum_k exp S(i, k) ) in float64, i the queries of one side."""
    rng, real = np.random.default_rng(0), np.arange(9) != 4
    audio, text = rng.normal(size=(2, 9, WIDTH)).astype(np.float32)
    params = {"log_logit_scale": jnp.float32(0.7)}
    loss = functools.partial(contrastive_loss, RetrievalConfig(direction=direction), params)
    (found, weight), scale = jax.jit(loss)(audio, text, {"mask": real})
    scores = np.exp(0.7) * (audio[real].astype(np.float64) @ text[real].astype(np.float64).T)
    by_query = scores if direction == "audio_to_text" else scores.T
    expected = np.sum(np.log(np.exp(by_query).sum(axis=1)) - np.diag(by_query))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert weight == 8
    np.testing.assert_allclose(scale, np.exp(0.7), rtol=1e-6)


def test_tau_is_kept_in_its_bounds_and_log_logit_scale_follows(objective_config):
    config = InfoNceConfig(temperature=TauTemperature(bounds=(0.001, 0.5)))
    project = build_objective(dataclasses.replace(objective_config, loss=config)).project
    after = project({"tau": jnp.float32(0.7), "log_logit_scale": jnp.float32(0)})
    assert after["tau"] == 0.5
    np.testing.assert_allclose(after["log_logit_scale"], np.log(2.0), rtol=1e-6)


def test_scalars_of_the_losses_are_parameters_beside_the_towers(objective_config):
    for loss, names in (
        (InfoNceConfig(), set()),
        (LOSSES["tau"], {"tau"}),
        (SigmoidConfig(), {"logit_bias"}),
    ):
        objective = build_objective(dataclasses.replace(objective_config, loss=loss))
        params = jax.eval_shape(objective.init, jax.random.key(0))["params"]
        scalars = {name for name, leaf in params.items() if not isinstance(leaf, dict)}
        assert scalars == names | {"log_logit_scale"}
        assert set(objective.axes()) == set(params)


def test_bounds_that_cross_are_refused():
    with pytest.raises(UserError, match=r"bounds are \(0.5, 0.1\)"):
        TauTemperature(bounds=(0.5, 0.1))
