"""RMSNorm and its gradient against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from alm_jax.nn.rms_norm import RmsNorm, to_unit_rms


def test_rms_norm_equals_pytorch():
    rng = np.random.default_rng(0)
    x, scale = rng.normal(size=(3, 5, 16)).astype(np.float32), rng.normal(size=16).astype(np.float32)
    expected = torch.nn.functional.rms_norm(torch.tensor(x), (16,), torch.tensor(scale), eps=0.1)
    actual = RmsNorm(jnp.dtype("float32"), 0.1).apply(
        {"params": {"scale": jnp.asarray(scale)}}, jnp.asarray(x)
    )
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_gradient_equals_pytorch():
    rng = np.random.default_rng(1)
    x, weights = rng.normal(size=(2, 4, 16)).astype(np.float32)
    theirs = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    (torch.nn.functional.rms_norm(theirs, (16,), eps=0.1) * torch.tensor(weights)).sum().backward()
    actual = jax.grad(lambda x: jnp.sum(to_unit_rms(x, 0.1) * weights))(jnp.asarray(x))
    np.testing.assert_allclose(actual, theirs.grad, atol=1e-6)


def test_what_the_backward_pass_keeps_is_no_wider_than_the_input():
    x = jax.ShapeDtypeStruct((64, 128), jnp.bfloat16)
    kept = jax.eval_shape(lambda x: jax.vjp(lambda x: to_unit_rms(x, 1e-6), x)[1], x)
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept)) == 64 * 128 * 2 + 64 * 4
