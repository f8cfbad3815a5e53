"""LayerNorm and BatchNorm against PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from alm_jax.nn.norm import BatchNorm, LayerNorm, feature_moments

FLOAT32 = jnp.dtype("float32")


@pytest.mark.parametrize("epsilon", [1e-5, 1e-12])
def test_layer_norm_equals_pytorch(rng, epsilon):
    x = rng.normal(2, 0.5, (4, 7, 32)).astype(np.float32)
    scale, bias = rng.normal(size=(2, 32)).astype(np.float32)
    expected = torch.nn.functional.layer_norm(
        torch.tensor(x).double(), (32,), torch.tensor(scale).double(), torch.tensor(bias).double(), epsilon
    )
    params = {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}
    actual = LayerNorm(FLOAT32, epsilon).apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
def test_gradients_of_layer_norm_equal_pytorch(rng, epsilon):
    """In double precision there; an epsilon beside the variance shows a closed form that forgets it."""
    x, cotangent = rng.normal(2, 0.5, (2, 4, 7, 32)).astype(np.float32)
    scale, bias = rng.normal(size=(2, 32)).astype(np.float32)
    inputs = [torch.tensor(a).double().requires_grad_() for a in (x, scale, bias)]
    expected = torch.nn.functional.layer_norm(inputs[0], (32,), inputs[1], inputs[2], epsilon)
    expected.backward(torch.tensor(cotangent).double())

    def loss(x, scale, bias):
        params = {"scale": scale, "bias": bias}
        return jnp.sum(LayerNorm(FLOAT32, epsilon).apply({"params": params}, x) * cotangent)

    actual = jax.grad(loss, argnums=(0, 1, 2))(*map(jnp.asarray, (x, scale, bias)))
    for ours, theirs in zip(actual, inputs, strict=True):
        # Sums of terms of both signs, up to 27: 1.1e-5 was measured where the largest is 6.
        np.testing.assert_allclose(ours, theirs.grad, atol=1e-5 * float(theirs.grad.abs().max()))


def test_layer_norm_of_bfloat16_computes_in_float32(rng):
    x = jnp.asarray(rng.normal(8, 0.1, (4, 512)), jnp.bfloat16)
    params = {"scale": jnp.ones((512,)), "bias": jnp.zeros((512,))}
    out = LayerNorm(jnp.dtype("bfloat16")).apply({"params": params}, x)
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    # Half a step of bfloat16 at 4.
    np.testing.assert_allclose(np.asarray(out, np.float64), exact, atol=1 / 64)


@pytest.fixture
def features(rng) -> np.ndarray:
    """Log-mel-like: decibels, each bin with its own mean and spread."""
    mean, spread = rng.uniform(-60, -10, 12), rng.uniform(1, 20, 12)
    return (mean + spread * rng.normal(size=(8, 21, 12))).astype(np.float32)


@pytest.fixture
def variables(rng) -> dict:
    scale, bias = rng.normal(1, 0.2, (2, 12)).astype(np.float32)
    return {
        "params": {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)},
        "batch_stats": {"mean": jnp.zeros(12), "var": jnp.ones(12)},
    }


def train(variables, features, **kwargs):
    return BatchNorm().apply(variables, jnp.asarray(features), train=True, mutable=["batch_stats"], **kwargs)


def test_batch_norm_equals_pytorch(features, variables):
    """Three training steps, then evaluation with the running statistics they left."""
    reference = torch.nn.BatchNorm2d(12)
    with torch.no_grad():
        reference.weight.copy_(torch.tensor(np.asarray(variables["params"]["scale"])))
        reference.bias.copy_(torch.tensor(np.asarray(variables["params"]["bias"])))
    as_image = torch.tensor(features).permute(0, 2, 1)[..., None]
    for step in range(3):
        shifted = features + 3 * step
        expected = reference(as_image + 3 * step)[..., 0].permute(0, 2, 1).detach()
        actual, updated = train(variables, shifted)
        np.testing.assert_allclose(actual, expected, atol=1e-5)
        variables = {**variables, **updated}
    np.testing.assert_allclose(variables["batch_stats"]["mean"], reference.running_mean, rtol=1e-5)
    np.testing.assert_allclose(variables["batch_stats"]["var"], reference.running_var, rtol=1e-5)

    reference.eval()
    actual = BatchNorm().apply(variables, jnp.asarray(features), train=False)
    expected = reference(as_image)[..., 0].permute(0, 2, 1).detach()
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_padding_rows_leave_no_trace(features, variables):
    mask = np.array([True] * 5 + [False] * 3)
    padded = np.where(mask[:, None, None], features, -100.0).astype(np.float32)
    alone, stats_alone = train(variables, features[:5])
    actual, stats = train(variables, padded, mask=jnp.asarray(mask))
    np.testing.assert_allclose(actual[:5], alone, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), stats, stats_alone)


def test_micro_batches_with_the_moments_of_the_whole_equal_the_whole(features, variables):
    whole, stats = train(variables, features)
    moments = feature_moments(jnp.asarray(features))
    parts = [train(variables, part, moments=moments) for part in np.split(features, 4)]
    np.testing.assert_allclose(np.concatenate([out for out, _ in parts]), whole, atol=1e-6)
    for _, part_stats in parts:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), part_stats, stats)


@pytest.mark.parametrize("num_devices", [2, 8])
@pytest.mark.parametrize("transform", ["shard_map", "pmap"])
def test_split_over_devices_equals_the_whole(features, variables, num_devices, transform):
    mask = jnp.asarray([True, False, True, True, True, True, False, True])
    whole, stats = train(variables, features, mask=mask)

    def local(variables, features, mask):
        return train(variables, features, mask=mask, moments=feature_moments(features, mask, "data"))

    if transform == "shard_map":
        mesh = Mesh(np.asarray(jax.devices()[:num_devices]), ("data",))
        mapped = jax.shard_map(
            local, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=(P("data"), P())
        )
        actual, actual_stats = mapped(variables, jnp.asarray(features), mask)
    else:
        split = functools.partial(jnp.reshape, shape=(num_devices, -1))
        mapped = jax.pmap(local, axis_name="data", in_axes=(None, 0, 0), devices=jax.devices()[:num_devices])
        out, actual_stats = mapped(
            variables, jnp.reshape(features, (num_devices, -1, *features.shape[1:])), split(mask)
        )
        actual, actual_stats = out.reshape(features.shape), jax.tree.map(lambda x: x[-1], actual_stats)
    np.testing.assert_allclose(actual, whole, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), actual_stats, stats)


def test_a_batch_of_padding_alone_stays_finite_and_moves_no_statistics(features, variables):
    out, stats = train(variables, features, mask=jnp.zeros(8, jnp.bool_))
    assert bool(jnp.all(jnp.isfinite(out)))
    jax.tree.map(np.testing.assert_array_equal, stats["batch_stats"], variables["batch_stats"])


def test_channels_of_a_map_and_another_momentum_equal_pytorch(features, variables):
    maps = features.reshape(8, 7, 3, 12)
    reference = torch.nn.BatchNorm2d(12, momentum=0.01)
    expected = reference(torch.tensor(maps).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).detach()
    plain = {**variables, "params": {"scale": jnp.ones(12), "bias": jnp.zeros(12)}}
    module = BatchNorm("embed", momentum=0.01)
    actual, updated = module.apply(plain, jnp.asarray(maps), train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], reference.running_mean, rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], reference.running_var, rtol=1e-5)
