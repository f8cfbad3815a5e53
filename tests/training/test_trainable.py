"""Frozen parameters, adapters and parameters from elsewhere, in steps of the small two-tower model."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_batches import make_batch

from alm_jax.errors import UserError
from alm_jax.objectives import build_objective
from alm_jax.run.config_json import from_json, to_json
from alm_jax.training.accumulation import loss_and_gradients
from alm_jax.training.build import build_parallel
from alm_jax.training.initialise import InitFromConfig, take_from
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.lora import LoraConfig, add_adapters, compute_update, find_targets
from alm_jax.training.mesh import MeshConfig, build_mesh
from alm_jax.training.optimizer import AdamWConfig
from alm_jax.training.parameter_paths import parameter_paths
from alm_jax.training.trainable import freeze, overlay, select

LORA = LoraConfig(
    targets=("^text/blocks/attention/.*kernel$", "^text/blocks/mlp/.*kernel$", "^audio/.*/out/kernel$"),
    rank=2,
    alpha=6.0,
)
OPTIMIZER = AdamWConfig(warmup_steps=0, frozen=("^text/",))
TRAINING = TrainingConfig(
    num_steps=10, batch_size=16, ema_decay=0.9, mesh=MeshConfig(data=2, fsdp=2, tensor=2)
)


@pytest.fixture(scope="module")
def objective(objective_config):
    return build_objective(objective_config)


@pytest.fixture(scope="module")
def adapted(objective):
    return add_adapters(objective, LORA)


@pytest.fixture(scope="module")
def variables(adapted):
    return adapted.init(jax.random.key(0))


@pytest.fixture(scope="module")
def run(adapted):
    """A run of adapters on cut parameters, its first state and the one after a step."""
    parallel = build_parallel(adapted, OPTIMIZER, TRAINING, seed=0, mesh=build_mesh(TRAINING.mesh))
    first = parallel.init()
    kept = jax.tree.map(np.asarray, first)
    return parallel, kept, parallel.step(first, make_batch(16))


def paths_of(tree):
    return set(jax.tree.leaves(parameter_paths(tree)))


def draw_b(params):
    """``params`` with a B that is not zero."""
    rng = np.random.default_rng(0)
    return {
        **params,
        "lora": jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), params["lora"]),
    }


def test_a_selection_has_no_room_for_the_rest_and_goes_back_into_its_place():
    tree = {"a": {"x": 1, "y": 2}, "b": {"z": 3}}
    selected = select(tree, {"a": {"x": True, "y": False}, "b": {"z": False}})
    assert selected == {"a": {"x": 1}}
    assert overlay(tree, {"a": {"x": 9}}) == {"a": {"x": 9, "y": 2}, "b": {"z": 3}}


def test_adapters_change_nothing_at_first(objective, adapted, variables):
    plain = objective.init(jax.random.key(0))["params"]
    jax.tree.map(np.testing.assert_array_equal, adapted.merge(variables["params"]), plain)
    for path, leaf in jax.tree.leaves_with_path(variables["params"]["lora"]):
        if path[-1].key == "b":
            assert not leaf.any()
    # kaiming_uniform(a = sqrt(5)): uniform in +-1/sqrt(inputs), here of a [layers 16 2].
    a = np.asarray(variables["params"]["lora"]["text"]["blocks"]["attention"]["qkv"]["kernel"]["a"])
    assert a.shape == (2, 16, 2)
    assert 0.22 < np.abs(a).max() <= 0.25


def test_merged_kernels_equal_the_formula_in_float64(adapted, variables):
    """W x + (alpha / rank) B A x of each layer, as peft computes it."""
    params = draw_b(variables["params"])
    merged = adapted.merge(params)
    rng = np.random.default_rng(1)
    for name, inputs in (("qkv", 1), ("out", 2)):
        pair = params["lora"]["text"]["blocks"]["attention"][name]["kernel"]
        base = np.asarray(params["text"]["blocks"]["attention"][name]["kernel"], np.float64)
        own = np.asarray(merged["text"]["blocks"]["attention"][name]["kernel"], np.float64)
        for layer in range(2):
            x = rng.normal(size=(5, 16))
            w = base[layer].reshape(16, -1) if inputs == 1 else base[layer].reshape(-1, 16)
            a = np.asarray(pair["a"][layer], np.float64).reshape(16, 2)
            b = np.asarray(pair["b"][layer], np.float64).reshape(2, -1)
            np.testing.assert_allclose(
                x @ own[layer].reshape(w.shape), x @ w + 3.0 * ((x @ a) @ b), atol=2e-5, rtol=1e-5
            )
    untouched = merged["text"]["token_embed"]["embedding"]
    np.testing.assert_array_equal(untouched, params["text"]["token_embed"]["embedding"])


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_gradients_are_those_of_what_trains(adapted, variables, num_microbatches):
    objective = freeze(adapted, ("^text/", "^audio/"))
    trained = {
        path
        for path in paths_of(variables["params"])
        if path.startswith(("lora/", "audio_", "text_", "log_"))
    }
    compute = functools.partial(loss_and_gradients, objective, num_microbatches=num_microbatches)
    _, grads, _, _ = jax.eval_shape(compute, variables, make_batch(16), jax.random.key(0))
    assert paths_of(grads) == trained


def test_a_step_moves_adapters_alone_and_keeps_nothing_for_the_rest(run):
    _, before, (after, metrics) = run
    assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(
        lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), before.params, after.params
    )
    found = {
        path
        for path, is_moved in zip(
            jax.tree.leaves(parameter_paths(moved)), jax.tree.leaves(moved), strict=True
        )
        if is_moved
    }
    assert any(path.startswith("lora/text/") for path in found)
    assert not any(path.startswith("text/") for path in found)
    assert "audio/stage0_block0/attention/out/kernel" not in found
    assert "audio/stage0_block0/attention/qkv/kernel" in found
    sizes = sum(x.size for x in jax.tree.leaves(after.ema_params))
    expected = sum(
        leaf.size
        for path, leaf in zip(
            jax.tree.leaves(parameter_paths(before.params)), jax.tree.leaves(before.params), strict=True
        )
        if not path.startswith("text/") and not (path.startswith("audio/") and path.endswith("/out/kernel"))
    )
    assert sizes == expected
    moments = [
        leaf.size for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim or leaf.dtype == jnp.float32
    ]
    assert sum(moments) == 2 * expected


def test_adapters_are_cut_like_their_kernels(run):
    parallel, _, (after, _) = run
    pair = after.params["lora"]["text"]["blocks"]["mlp"]["up"]["kernel"]
    assert pair["a"].sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", None)
    assert pair["b"].sharding.spec == jax.sharding.PartitionSpec(None, None, "tensor")
    assert parallel.abstract().ema_params["lora"]["text"]["blocks"]["mlp"]["up"]["kernel"]["b"].shape == (
        2,
        2,
        32,
    )


def test_dropout_zeroes_inputs_of_an_adapter_and_keeps_its_mean(objective):
    config = dataclasses.replace(LORA, dropout=0.25)
    target = dataclasses.replace(
        find_targets(objective, LORA)[0],
        shape=(1, 40, 3),
        axes=("layers", "embed", "mlp"),
        num_stacked=1,
        num_inputs=1,
    )
    a, b = jnp.ones((1, 40, 2)), jnp.ones((1, 2, 3))
    full = np.asarray(compute_update(target, a, b, config, None))
    draws = np.stack([compute_update(target, a, b, config, jax.random.key(seed)) for seed in range(60)])
    np.testing.assert_allclose(full, 6.0)
    scaled, zeroed = np.isclose(draws, 8.0, rtol=1e-6), draws == 0.0
    assert (scaled | zeroed).all()
    # One draw an input; 2,400 of them, deviation 0.009.
    assert (zeroed == zeroed[..., :1]).all()
    assert abs(zeroed.mean() - 0.25) < 0.04


def test_parameters_from_elsewhere_take_their_place(run, adapted):
    parallel, _, _ = run
    other = adapted.init(jax.random.key(7))
    given = {
        "params": {"audio": other["params"]["audio"], "head": {"kernel": np.ones(3)}},
        "batch_stats": other["batch_stats"],
    }
    config = InitFromConfig(source="somewhere", into="audio", part="audio")
    state, said = take_from(parallel.init(), given, config)
    jax.tree.map(np.testing.assert_array_equal, state.params["audio"], other["params"]["audio"])
    first = parallel.init()
    jax.tree.map(np.testing.assert_array_equal, state.params["text"], first.params["text"])
    assert state.params["audio"]["norm"]["scale"].sharding == first.params["audio"]["norm"]["scale"].sharding
    jax.tree.map(np.testing.assert_array_equal, state.ema_params, select_like(state.params, state.ema_params))
    assert said.startswith("audio: ")
    assert "parameters from somewhere" in said
    whole, said = take_from(
        parallel.init(),
        {
            "params": {**other["params"]["audio"], "head": {"kernel": np.ones(3)}},
            "batch_stats": other["batch_stats"]["audio"],
        },
        InitFromConfig(source="there", into="audio"),
    )
    assert said.endswith("not used: head/kernel")
    # A step donates its state: no buffer may be two leaves.
    parallel.step(whole, make_batch(16))


def select_like(tree, selection):
    return {
        name: select_like(tree[name], value) if isinstance(value, dict) else tree[name]
        for name, value in selection.items()
    }


def test_what_does_not_fit_is_refused(run, objective, adapted):
    parallel, _, _ = run
    state = parallel.init()
    audio = jax.tree.map(np.asarray, state.params["audio"])
    with pytest.raises(UserError, match=r"norm/scale \[32\]: missing"):
        take_from(
            state,
            {"params": {k: v for k, v in audio.items() if k != "norm"}, "batch_stats": {}},
            InitFromConfig(source="x", into="audio"),
        )
    wrong = {**audio, "norm": {"scale": np.ones(3), "bias": np.ones(32)}}
    with pytest.raises(UserError, match=r"norm/scale \[32\]: has shape \[3\]"):
        take_from(state, {"params": wrong}, InitFromConfig(source="x", into="audio"))
    with pytest.raises(UserError, match=r"there is no 'txet' among"):
        take_from(state, {"params": audio}, InitFromConfig(source="x", into="txet"))
    with pytest.raises(UserError, match="freezes every parameter"):
        freeze(objective, (".",)).trained(state.params)
    with pytest.raises(UserError, match="matches no parameter"):
        add_adapters(objective, LoraConfig(targets=("txet",)))
    with pytest.raises(UserError, match=r"text/token_embed/embedding .* is no kernel"):
        add_adapters(objective, LoraConfig(targets=("token_embed",)))
    with pytest.raises(UserError, match="expected a rank of 1"):
        LoraConfig(rank=0)


def test_configs_survive_their_json():
    for config in (LORA, InitFromConfig(source="folder", into="text")):
        assert from_json(json.loads(json.dumps(to_json(config))), type(config)) == config
