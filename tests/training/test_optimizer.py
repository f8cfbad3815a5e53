"""The optimizer against the formula of AdamW, and its masks."""

import jax
import numpy as np
import optax
import pytest

from alm_jax.errors import UserError
from alm_jax.training.optimizer import (
    AdafactorConfig,
    AdamWConfig,
    LionConfig,
    MuonConfig,
    build_optimizer,
    learning_rate,
    matrix_axes,
)
from alm_jax.training.parameter_paths import match_paths
from alm_jax.training.schedules import ConstantConfig, CosineConfig, WarmupStableDecayConfig

PARAMS = {
    "audio": {"block": {"kernel": np.full((2, 2), 2.0, np.float32), "bias": np.full(2, 2.0, np.float32)}},
    "log_logit_scale": np.float32(2.0),
}


def test_schedule_warms_up_and_decays():
    schedule = learning_rate(AdamWConfig(peak_lr=1.0, warmup_steps=10, final_lr_fraction=0.1), 110)
    values = np.array([schedule(update - 1) for update in (1, 5, 10, 60, 110)])
    np.testing.assert_allclose(values, [0.1, 0.5, 1.0, 0.1 + 0.9 * 0.5, 0.1], atol=1e-6)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (0, 6), (1, 6), (2, 6), (5, 6)])
def test_the_first_and_the_last_update_have_the_rates_of_the_config(warmup, steps):
    schedule = learning_rate(AdamWConfig(peak_lr=2.0, warmup_steps=warmup, final_lr_fraction=0.25), steps)
    rates = [float(schedule(update)) for update in range(steps)]
    assert rates[0] == pytest.approx(2.0 / max(warmup, 1))
    assert rates[max(warmup, 1) - 1] == pytest.approx(2.0)
    if steps > 1:
        assert rates[-1] == pytest.approx(0.5)
    assert all(rate > 0 for rate in rates)


def test_adamw_equals_the_formula_in_float64():
    config = AdamWConfig(peak_lr=0.1, warmup_steps=0, weight_decay=0.3, clip_norm=0.0, b1=0.8, b2=0.9)
    optimizer = build_optimizer(config, 100, PARAMS)
    params, state = PARAMS, optimizer.init(PARAMS)
    rng = np.random.default_rng(0)
    w, m, v = 2.0 * np.ones((2, 2)), np.zeros((2, 2)), np.zeros((2, 2))
    for t in range(1, 4):
        grad = rng.normal(size=(2, 2))
        grads = {
            "audio": {"block": {"kernel": grad.astype(np.float32), "bias": np.zeros(2, np.float32)}},
            "log_logit_scale": np.float32(0.0),
        }
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        m, v = 0.8 * m + 0.2 * grad, 0.9 * v + 0.1 * grad**2
        lr = 0.1 * 0.5 * (1 + np.cos(np.pi * (t - 1) / 99))
        w = w - lr * (m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8) + 0.3 * w)
    np.testing.assert_allclose(params["audio"]["block"]["kernel"], w, rtol=1e-5)
    # Neither biases nor the temperature decay.
    np.testing.assert_array_equal(params["audio"]["block"]["bias"], 2.0)
    assert params["log_logit_scale"] == 2.0


def test_gradients_are_clipped_by_their_global_norm():
    config = AdamWConfig(peak_lr=1.0, warmup_steps=0, weight_decay=0.0, clip_norm=1.0)
    optimizer = build_optimizer(config, 100, PARAMS)
    huge = {"audio": {"block": {"kernel": np.full((2, 2), 1e6, np.float32), "bias": np.zeros(2, np.float32)}}}
    _, state = optimizer.update(huge | {"log_logit_scale": np.float32(0)}, optimizer.init(PARAMS), PARAMS)
    moment = next(leaf for leaf in _leaves(state) if leaf.shape == (2, 2))
    assert np.linalg.norm(moment) == pytest.approx(0.1, rel=1e-5)


def _leaves(tree):
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_a_pattern_that_freezes_nothing_is_an_error():
    with pytest.raises(UserError, match=r"'audoi', which matches no parameter; paths begin with \['audio'"):
        match_paths(PARAMS, ("audoi",), "optimizer.frozen", all_must_match=True)


def test_a_pattern_that_is_no_expression_is_an_error():
    with pytest.raises(UserError, match="no regular expression"):
        match_paths(PARAMS, ("(",), "optimizer.no_decay", all_must_match=False)


def test_a_warm_up_longer_than_the_run_is_an_error():
    with pytest.raises(UserError, match="warmup_steps is 100"):
        learning_rate(AdamWConfig(warmup_steps=100), 100)


AXES = {"audio": {"block": {"kernel": "embed mlp", "bias": "mlp"}}, "log_logit_scale": ""}


def optimized(config, num_steps=3, size=(2, 2)):
    """A kernel of ones, times two, after some updates by random gradients, and those gradients."""
    params = {
        "audio": {"block": {"kernel": 2 * np.ones(size, np.float32), "bias": np.ones(size[1:], np.float32)}}
    }
    axes = {"audio": AXES["audio"]}
    optimizer = build_optimizer(config, 100, params, axes)
    state, rng, found = optimizer.init(params), np.random.default_rng(0), []
    for _ in range(num_steps):
        found.append(rng.normal(size=size))
        grads = {
            "audio": {
                "block": {"kernel": found[-1].astype(np.float32), "bias": np.ones(size[1:], np.float32)}
            }
        }
        updates, state = jax.jit(optimizer.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params["audio"]["block"]["kernel"], found, state


FLAT = {
    "peak_lr": 0.1,
    "warmup_steps": 0,
    "schedule": ConstantConfig(),
    "weight_decay": 0.3,
    "clip_norm": 0.0,
}


def test_lion_equals_the_formula_in_float64():
    kernel, grads, state = optimized(LionConfig(**FLAT, b1=0.8, b2=0.9))
    w, m = 2.0 * np.ones((2, 2)), np.zeros((2, 2))
    for grad in grads:
        w = w - 0.1 * (np.sign(0.8 * m + 0.2 * grad) + 0.3 * w)
        m = 0.9 * m + 0.1 * grad
    np.testing.assert_allclose(kernel, w, rtol=1e-5)
    assert sum(leaf.size for leaf in _leaves(state) if leaf.size > 1) == 6  # one moment


@pytest.mark.parametrize("is_relative", [True, False])
def test_adafactor_equals_the_formula_in_float64(is_relative):
    config = AdafactorConfig(**FLAT, min_factored_size=4, is_relative=is_relative)
    kernel, grads, state = optimized(config, size=(4, 6))
    w, row, column = 2.0 * np.ones((4, 6)), np.zeros(4), np.zeros(6)
    for t, grad in enumerate(grads, start=1):
        share = 1 - t**-0.8
        row = share * row + (1 - share) * np.mean(grad**2, axis=1)
        column = share * column + (1 - share) * np.mean(grad**2, axis=0)
        update = grad / np.sqrt(np.outer(row, column) / row.mean())
        update = update / max(1.0, np.sqrt(np.mean(update**2)))
        w = w - 0.1 * (update * (np.sqrt(np.mean(w**2)) if is_relative else 1.0) + 0.3 * w)
    np.testing.assert_allclose(kernel, w, rtol=1e-5)
    # A row and a column of the kernel, and the whole of the bias.
    assert sum(leaf.size for leaf in _leaves(state) if leaf.size > 1) == 4 + 6 + 6


def test_muon_equals_the_formula_in_float64():
    kernel, grads, state = optimized(MuonConfig(**FLAT, beta=0.9, rms=0.2), size=(4, 6))
    w, m = 2.0 * np.ones((4, 6)), np.zeros((4, 6))
    for t, grad in enumerate(grads, start=1):
        m = 0.9 * m + 0.1 * grad
        # Nesterov's look ahead, of averages without their bias to zero.
        x = 0.9 * m / (1 - 0.9 ** (t + 1)) + 0.1 * grad / (1 - 0.9**t)
        x = x / np.linalg.norm(x)
        for _ in range(5):
            square = x @ x.T
            x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
        w = w - 0.1 * (x * 0.2 * np.sqrt(6) + 0.3 * w)
    # Five steps of Newton and Schulz amplify small singular values by up to 3.4 each: 2e-6 was measured.
    np.testing.assert_allclose(kernel, w, rtol=1e-4)
    assert sum(leaf.size for leaf in _leaves(state) if leaf.shape == (4, 6)) == 24  # one moment


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        ("embed mlp", ((0,), (1,))),
        ("embed qkv heads head_dim", ((0,), (2, 3))),
        ("layers heads head_dim embed", ((1, 2), (3,))),
        ("window_rows window_columns channels_in channels", ((0, 1, 2), (3,))),
        ("embed vocab", None),
        ("layers embed", None),
    ],
)
def test_matrices_of_kernels(names, numbers):
    found = matrix_axes(names.split())
    assert (found if found is None else tuple(found)) == numbers


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (ConstantConfig(), [0.5, 1.0, 1.0, 1.0, 1.0]),
        (CosineConfig(), [0.5, 1.0, 0.1 + 0.9 * 0.5, 0.1 + 0.9 * (1 + np.cos(0.75 * np.pi)) / 2, 0.1]),
        (WarmupStableDecayConfig(decay_fraction=0.5), [0.5, 1.0, 1.0, 0.55, 0.1]),
    ],
)
def test_schedules(schedule, rates):
    config = AdamWConfig(peak_lr=1.0, warmup_steps=20, final_lr_fraction=0.1, schedule=schedule)
    found = learning_rate(config, 100)
    np.testing.assert_allclose([found(step - 1) for step in (10, 20, 60, 80, 100)], rates, rtol=1e-6)
