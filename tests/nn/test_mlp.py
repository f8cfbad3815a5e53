"""GELU and the feed-forward block against PyTorch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers.activations import QuickGELUActivation

from alm_jax.nn.mlp import Mlp, gelu, gelu_tanh, quick_gelu


def test_gelu_is_the_exact_one():
    x = np.linspace(-6, 6, 1001).astype(np.float32)
    expected = torch.nn.functional.gelu(torch.tensor(x))
    np.testing.assert_allclose(gelu(jnp.asarray(x)), expected, atol=1e-6)


def test_gradient_of_gelu_equals_pytorch():
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.gelu(x).sum().backward()
    actual = jax.grad(lambda x: jnp.sum(gelu(x)))(jnp.asarray(x.detach().numpy(), jnp.float32))
    np.testing.assert_allclose(actual, x.grad, atol=1e-6)


def test_mlp_equals_two_linear_layers_of_pytorch():
    up, down = torch.nn.Linear(8, 20), torch.nn.Linear(20, 8)
    params = jax.tree.map(
        lambda x: jnp.asarray(x.detach().numpy()),
        {
            "up": {"kernel": up.weight.T, "bias": up.bias},
            "down": {"kernel": down.weight.T, "bias": down.bias},
        },
    )
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    expected = down(torch.nn.functional.gelu(up(torch.tensor(x)))).detach()
    actual = Mlp(20, jnp.dtype("float32")).apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_gelu_tanh_is_the_approximation():
    x = np.linspace(-6, 6, 1001).astype(np.float32)
    expected = torch.nn.functional.gelu(torch.tensor(x), approximate="tanh")
    np.testing.assert_allclose(gelu_tanh(jnp.asarray(x)), expected, atol=1e-6)


def test_quick_gelu_is_clips():
    x = np.linspace(-6, 6, 1001).astype(np.float32)
    expected = QuickGELUActivation()(torch.tensor(x))
    np.testing.assert_allclose(quick_gelu(jnp.asarray(x)), expected, atol=1e-6)


def test_without_biases_there_are_matrices_alone():
    module = Mlp(20, jnp.dtype("float32"), activation=jax.nn.relu, use_bias=False)
    x = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    y, variables = module.init_with_output(jax.random.key(0), jnp.asarray(x))
    up, down = (nn.unbox(variables)["params"][name] for name in ("up", "down"))
    assert up.keys() == down.keys() == {"kernel"}
    np.testing.assert_allclose(y, np.maximum(x @ up["kernel"], 0) @ down["kernel"], atol=1e-6)
