"""ChannelNorm against PyTorch's GroupNorm."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from alm_jax.nn.channel_norm import ChannelNorm

FLOAT32 = jnp.dtype("float32")


def test_equals_pytorch_and_padding_has_no_say():
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, size=(2, 9, 4)).astype(np.float32)
    scale, bias = rng.normal(size=(2, 4)).astype(np.float32)
    reference = torch.nn.GroupNorm(4, 4)
    reference.load_state_dict({"weight": torch.tensor(scale), "bias": torch.tensor(bias)})
    apply = jax.jit(ChannelNorm(FLOAT32).apply)
    params = {"params": {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}}
    with torch.no_grad():
        whole, part = reference(torch.tensor(x).mT).mT, reference(torch.tensor(x[:, :6]).mT).mT
    np.testing.assert_allclose(apply(params, jnp.asarray(x)), whole, atol=1e-5)
    mask = jnp.arange(9)[None, :] < jnp.asarray([[9], [6]])
    masked = apply(params, jnp.where(mask[:, :, None], x, 50.0), mask)
    np.testing.assert_allclose(masked[0], whole[0], atol=1e-5)
    np.testing.assert_allclose(masked[1, :6], part[1], atol=1e-5)
