"""Micro-batches against the whole batch, and both against a formula that knows nothing of either."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_batches import make_batch

from alm_jax.objectives import build_objective
from alm_jax.training.accumulation import loss_and_gradients, merge_rows, split_rows

ROWS, NUM_PADDING = 12, 2


@pytest.fixture(scope="module")
def objective(objective_config):
    return build_objective(objective_config)


@pytest.fixture(scope="module")
def variables(objective):
    return jax.jit(objective.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def run(objective, variables):
    """(num_microbatches, batch) -> loss, gradients, batch_stats, metrics, compiled once a number."""

    @functools.partial(jax.jit, static_argnums=0)
    def compute(num_microbatches, batch):
        return loss_and_gradients(
            objective, variables, batch, jax.random.key(1), num_microbatches=num_microbatches
        )

    return lambda num_microbatches, batch: jax.device_get(compute(num_microbatches, batch))


@pytest.fixture(scope="module")
def whole(run):
    return run(1, make_batch(ROWS, num_padding=NUM_PADDING))


def test_microbatches_equal_the_whole_batch(run, whole):
    loss, grads, batch_stats, metrics = run(3, make_batch(ROWS, num_padding=NUM_PADDING))
    assert loss == pytest.approx(whole[0], abs=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole[1]))
    assert largest > 1e-3
    for (path, leaf), expected in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(whole[1]), strict=True
    ):
        np.testing.assert_allclose(leaf, expected, atol=2e-5 * largest, err_msg=str(path))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), batch_stats, whole[2])
    assert metrics["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-5)


def test_loss_equals_the_float64_formula(objective, variables, whole):
    batch = jax.tree.map(jnp.asarray, make_batch(ROWS, num_padding=NUM_PADDING))
    inputs = objective.prepare(batch, jax.random.key(1), train=True)
    (audio, text), _ = objective.encode(variables, inputs, jax.random.key(2), train=True)
    a, t = (np.asarray(x, np.float64)[: ROWS - NUM_PADDING] for x in (audio, text[:, 0]))
    logits = a @ t.T / 0.07
    rows = np.log(np.exp(logits).sum(1)) - np.diag(logits)
    columns = np.log(np.exp(logits).sum(0)) - np.diag(logits)
    assert whole[0] == pytest.approx((rows + columns).mean() / 2, abs=1e-5)


def test_averaging_the_losses_of_halves_would_be_wrong(run, whole):
    """The reason for this module: pairs of another half are negatives too."""
    batch = make_batch(ROWS, num_padding=NUM_PADDING)
    halves = [run(1, batch | {"mask": batch["mask"] & (np.arange(ROWS) % 2 == half)})[0] for half in range(2)]
    assert abs(np.mean(halves) - whole[0]) > 0.1


def test_a_batch_of_padding_gives_zero_and_no_nan(run):
    loss, grads, _, _ = run(1, make_batch(ROWS, num_padding=ROWS))
    assert loss == 0.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_rows_are_split_and_merged_back():
    x = jnp.arange(24).reshape(12, 2)
    pieces = split_rows({"x": x}, 3)
    assert pieces["x"].shape == (3, 4, 2)
    np.testing.assert_array_equal(pieces["x"][1, :, 0] // 2 % 3, 1)
    np.testing.assert_array_equal(merge_rows(pieces)["x"], x)
