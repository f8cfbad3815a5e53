"""The same steps under jit on one device, on meshes of eight, and under pmap: the same run."""

import functools

import jax
import numpy as np
import pytest
from training_batches import make_batch

from alm_jax.errors import UserError
from alm_jax.objectives import build_objective
from alm_jax.training.mesh import MeshConfig, build_mesh, check_batch_size, resolve_shape
from alm_jax.training.optimizer import AdamWConfig, build_optimizer, learning_rate
from alm_jax.training.parallel import PMAP_AXIS, JitParallel, PmapParallel
from alm_jax.training.sharding import check_sharded, parameter_shardings
from alm_jax.training.state import init_state
from alm_jax.training.step import build_train_step

NUM_STEPS = 3
BATCHES = [make_batch(16, num_padding=3, seed=seed) for seed in range(NUM_STEPS)]


def build(objective_config, mode, mesh_config=None, **step_options):
    objective = build_objective(objective_config)
    config = AdamWConfig(warmup_steps=1, peak_lr=1e-2)
    abstract = jax.eval_shape(objective.init, jax.random.key(0))
    optimizer = build_optimizer(config, 10, abstract["params"])
    init = functools.partial(init_state, objective, optimizer, 0, with_ema=True)
    step = functools.partial(
        build_train_step,
        objective,
        optimizer,
        schedule=learning_rate(config, 10),
        ema_decay=0.9,
        **step_options,
    )
    if mode == "pmap":
        return PmapParallel(init, step(axis_name=PMAP_AXIS))
    mesh = build_mesh(MeshConfig(), jax.devices()[:1]) if mode == "one device" else build_mesh(mesh_config)
    return JitParallel(init, step(), objective, mesh)


def train(parallel):
    state, losses = parallel.init(), []
    for batch in BATCHES:
        state, metrics = parallel.step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(parallel.unplaced(state))


@pytest.fixture(scope="module")
def one_device(objective_config):
    return train(build(objective_config, "one device"))


@pytest.mark.parametrize(
    ("mode", "mesh_config"),
    [
        pytest.param("jit", MeshConfig(data=8), marks=pytest.mark.slow),
        ("jit", MeshConfig(data=2, fsdp=2, tensor=2)),
        ("pmap", None),
    ],
    ids=["data 8", "data 2 x fsdp 2 x tensor 2", "pmap 8"],
)
def test_eight_devices_train_as_one(objective_config, one_device, mode, mesh_config):
    losses, state = train(build(objective_config, mode, mesh_config))
    np.testing.assert_allclose(losses, one_device[0], rtol=2e-5)
    # Adam divides by the root of tiny second moments, so rounding of gradients shows in parameters.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), state.params, one_device[1].params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        state.batch_stats,
        one_device[1].batch_stats,
    )
    assert int(state.step) == NUM_STEPS


def test_the_average_follows_the_parameters(one_device):
    """ema_t = ema + (1 - d)(params - ema): it lies between the first and the last parameters."""
    state = one_device[1]
    moved = [
        np.abs(ema - new).max()
        for ema, new in zip(jax.tree.leaves(state.ema_params), jax.tree.leaves(state.params), strict=True)
    ]
    assert 0 < max(moved) < 0.1


def test_fsdp_and_tensor_cut_the_parameters(objective_config):
    parallel = build(objective_config, "jit", MeshConfig(data=1, fsdp=4, tensor=2))
    state = parallel.init()
    kernel = state.params["text"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 8
    moments = next(
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if jax.tree_util.keystr(path).endswith(".mu['text']['blocks']['mlp']['up']['kernel']")
    )
    assert moments.sharding == kernel.sharding


def test_a_step_that_is_not_finite_changes_nothing_but_the_step(objective_config):
    parallel = build(objective_config, "one device")
    state, metrics = parallel.step(parallel.init(), BATCHES[0])
    before = jax.device_get(state)
    poisoned = jax.tree.map(lambda leaf: leaf * np.nan, state.params["text_projection"])
    state = jax.tree.map(lambda leaf: leaf, state)
    object.__setattr__(state, "params", {**state.params, "text_projection": poisoned})
    state, metrics = parallel.step(state, BATCHES[1])
    assert not np.isfinite(metrics["loss"])
    assert int(metrics["num_skipped"]) == 1
    assert int(state.step) == 2
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params["audio"]), before.params["audio"])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.opt_state), before.opt_state)


def test_steps_compile_once(objective_config):
    parallel = build(objective_config, "one device")
    state = parallel.init()
    for batch in BATCHES:
        state, _ = parallel.step(state, batch)
    assert parallel._step._cache_size() == 1


@pytest.mark.parametrize(
    ("config", "devices", "shape"),
    [
        (MeshConfig(), 8, (8, 1, 1)),
        (MeshConfig(data=2, fsdp=-1), 8, (2, 4, 1)),
        (MeshConfig(data=1, fsdp=2, tensor=4), 8, (1, 2, 4)),
    ],
)
def test_mesh_shapes(config, devices, shape):
    assert resolve_shape(config, devices) == shape


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (MeshConfig(data=3), "mesh.data 3 x mesh.fsdp 1 x mesh.tensor 1 = 3; set one of"),
        (MeshConfig(tensor=3), "mesh.fsdp 1 x mesh.tensor 3 be one of 1, 2, 4, 8"),
        (MeshConfig(data=-1, fsdp=-1), "at most one may be -1"),
        (MeshConfig(data=0), "each must be positive"),
        (MeshConfig(fsdp=2, num_slices=3), "must be one of 1, 2, 4"),
    ],
)
def test_a_mesh_that_does_not_fit_says_what_would(config, words):
    with pytest.raises(UserError, match="mesh") as error:
        resolve_shape(config, 8)
    assert words in str(error.value)


def test_slices_that_are_not_there_are_a_mistake():
    with pytest.raises(UserError, match="devices are of 1 slice"):
        build_mesh(MeshConfig(num_slices=2))


def test_a_batch_that_does_not_divide_says_which_would():
    check_batch_size(32, 2, 8)
    with pytest.raises(UserError, match=r"multiple of 16, for example 32 or 48"):
        check_batch_size(40, 2, 8)


@pytest.mark.parametrize(
    ("mesh_config", "shape", "words"),
    [
        # 12 heads on 8 devices; the width is 96, and a norm is too small to matter.
        (
            MeshConfig(data=1, tensor=8),
            (96, 3, 12, 8),
            "does not divide 12, the heads axis .* one of 1, 2, 4$",
        ),
        (
            MeshConfig(data=1, fsdp=8),
            (100, 3, 12, 8),
            "does not divide 100, the embed axis .* one of 1, 2, 4$",
        ),
        (MeshConfig(data=1, fsdp=8), None, "100% of their bytes"),
    ],
)
def test_a_mesh_that_cannot_cut_is_refused_with_what_could(mesh_config, shape, words):
    mesh = build_mesh(mesh_config)
    axes = {"qkv": ("embed", "qkv", "heads", "head_dim")} if shape else {"kernel": ("patch", "joint")}
    abstract = {name: jax.ShapeDtypeStruct(shape or (10, 16), np.float32) for name in axes}
    shardings = parameter_shardings(axes, abstract, mesh)
    with pytest.raises(UserError, match=words):
        check_sharded(axes, abstract, shardings, mesh)
