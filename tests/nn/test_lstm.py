"""The LSTM against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from alm_jax.nn.lstm import Lstm

FLOAT32 = jnp.dtype("float32")


def test_equals_pytorch():
    torch.manual_seed(0)
    reference = torch.nn.LSTM(6, 6, batch_first=True)
    state = {name: value.detach().numpy() for name, value in reference.named_parameters()}
    params = {
        "input": {
            "kernel": state["weight_ih_l0"].T.reshape(6, 4, 6),
            "bias": state["bias_ih_l0"].reshape(4, 6),
        },
        "recurrent": state["weight_hh_l0"].T.reshape(6, 4, 6),
        "recurrent_bias": state["bias_hh_l0"].reshape(4, 6),
    }
    x = np.random.default_rng(0).normal(size=(2, 9, 6)).astype(np.float32)
    actual, _ = jax.jit(Lstm(FLOAT32).apply)({"params": params}, jnp.asarray(x))
    with torch.no_grad():
        expected, _ = reference(torch.tensor(x))
    np.testing.assert_allclose(actual, expected, atol=1e-6)
