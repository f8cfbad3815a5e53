"""The absolute value and its gradient, at 0 too."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from alm_jax.losses.absolute import absolute


def test_value_and_gradient_equal_pytorch():
    x = np.array([-2.5, -0.0, 0.0, 1e-30, 3.0], np.float32)
    leaf = torch.tensor(x, requires_grad=True)
    leaf.abs().sum().backward()
    np.testing.assert_array_equal(jax.jit(absolute)(x), np.abs(x))
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda y: jnp.sum(absolute(y))))(x), leaf.grad.numpy())
