"""Convolutions against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from alm_jax.nn.conv import Conv, ConvTranspose1d, conv_length
from alm_jax.training import sharding
from alm_jax.training.mesh import MeshConfig, build_mesh

FLOAT32 = jnp.dtype("float32")


def draw(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def to_ours(array: torch.Tensor) -> jax.Array:
    """[outputs inputs *window] as [*window inputs outputs]."""
    return jnp.asarray(array.detach().numpy().transpose(*range(2, array.ndim), 1, 0))


@pytest.mark.parametrize(
    ("window", "strides", "padding", "dilation", "groups"),
    [
        ((3,), (1,), 1, (1,), 1),
        ((4,), (2,), 0, (1,), 2),
        ((3,), (1,), 2, (2,), 1),
        ((3, 2), (2, 1), 0, (1, 1), 1),
    ],
)
def test_equals_pytorch(window, strides, padding, dilation, groups):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *(11,) * len(window), 6)).astype(np.float32)
    kind = torch.nn.Conv1d if len(window) == 1 else torch.nn.Conv2d
    theirs = draw(kind(6, 8, window, strides, padding, dilation, groups))
    ours = Conv(
        8,
        window,
        ("channels_in", "channels"),
        FLOAT32,
        strides,
        ((padding, padding),) * len(window),
        dilation,
        groups,
    )
    params = {"kernel": to_ours(theirs.weight), "bias": jnp.asarray(theirs.bias.detach().numpy())}
    actual = ours.apply({"params": params}, jnp.asarray(x))
    with torch.no_grad():
        expected = theirs(torch.tensor(np.moveaxis(x, -1, 1)))
    np.testing.assert_allclose(np.moveaxis(actual, -1, 1), expected, atol=1e-5)
    assert actual.shape[1] == conv_length(11, dilation[0] * (window[0] - 1) + 1, strides[0], 2 * padding)


@pytest.mark.parametrize(("dim", "kept"), [(0, "last"), (2, "window")])
def test_weight_norm_equals_pytorch(dim, kept):
    x = np.random.default_rng(0).normal(size=(2, 9, 4)).astype(np.float32)
    theirs = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(4, 6, 3), dim=dim)
    draw(theirs)
    gain, direction = theirs.parametrizations.weight.original0, theirs.parametrizations.weight.original1
    params = {
        "kernel": to_ours(direction),
        "gain": jnp.asarray(gain.detach().numpy().ravel()),
        "bias": jnp.asarray(theirs.bias.detach().numpy()),
    }
    actual = Conv(6, (3,), ("channels_in", "channels"), FLOAT32, weight_norm=kept).apply(
        {"params": params}, jnp.asarray(x)
    )
    with torch.no_grad():
        expected = theirs(torch.tensor(x).transpose(1, 2)).transpose(1, 2)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_the_transposed_one_equals_pytorch():
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    theirs = torch.nn.utils.parametrizations.weight_norm(torch.nn.ConvTranspose1d(4, 3, 6, 3))
    draw(theirs)
    gain, direction = theirs.parametrizations.weight.original0, theirs.parametrizations.weight.original1
    params = {
        "kernel": to_ours(direction),
        "gain": jnp.asarray(gain.detach().numpy().ravel()),
        "bias": jnp.asarray(theirs.bias.detach().numpy()),
    }
    ours = ConvTranspose1d(3, 6, 3, ("channels_in", "channels"), FLOAT32, "last")
    actual = ours.apply({"params": params}, jnp.asarray(x))
    with torch.no_grad():
        expected = theirs(torch.tensor(x).transpose(1, 2)).transpose(1, 2)
    assert actual.shape == (2, 4 * 3 + 6, 3)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_parameters_stay_float32_and_carry_their_names():
    conv = Conv(8, (3, 2), ("channels_in", "embed"), jnp.dtype("bfloat16"), weight_norm="last")
    x = jnp.ones((1, 5, 5, 2))
    params = conv.init(jax.random.key(0), x)["params"]
    assert params["kernel"].names == ("window_rows", "window_columns", "channels_in", "embed")
    assert params["gain"].names == params["bias"].names == ("embed",)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {FLOAT32}
    assert conv.apply({"params": params}, x).dtype == jnp.bfloat16


def test_a_convolution_in_groups_runs_on_each_device_for_its_rows():
    module = Conv(8, (3,), ("channels_in", "channels"), jnp.dtype("float32"), padding=((1, 1),), groups=4)
    x = jax.random.normal(jax.random.key(0), (8, 6, 8))
    params = module.init(jax.random.key(1), x)
    params = jax.tree.map(lambda leaf: leaf.value, params, is_leaf=lambda leaf: hasattr(leaf, "value"))

    def loss(params, x):
        return jnp.sum(jnp.square(module.apply(params, x)))

    expected = jax.value_and_grad(loss, argnums=(0, 1))(params, x)
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh), sharding.layout(mesh):
        found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)
