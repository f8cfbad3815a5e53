"""The optimizer against the formula of AdamW, and its masks."""

import numpy as np
import optax
import pytest

from alm_jax.errors import UserError
from alm_jax.training.optimizer import AdamWConfig, build_optimizer, learning_rate
from alm_jax.training.parameter_paths import match_paths

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
