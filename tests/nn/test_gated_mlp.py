"""The gated feed-forward block against transformers'."""

import jax.numpy as jnp
import numpy as np
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaMLP

from alm_jax.nn.gated_mlp import GatedMlp
from alm_jax.nn.mlp import gelu_tanh


def test_gated_mlp_equals_transformers():
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    for activation, name in ((None, "silu"), (gelu_tanh, "gelu_new")):
        theirs = LlamaMLP(
            transformers.LlamaConfig(
                hidden_size=8, intermediate_size=20, num_attention_heads=1, hidden_act=name
            )
        )
        params = {
            part: {"kernel": jnp.asarray(getattr(theirs, f"{part}_proj").weight.detach().numpy().T)}
            for part in ("gate", "up", "down")
        }
        options = {} if activation is None else {"activation": activation}
        actual = GatedMlp(20, jnp.dtype("float32"), **options).apply({"params": params}, jnp.asarray(x))
        with torch.no_grad():
            np.testing.assert_allclose(actual, theirs(torch.tensor(x)), atol=1e-5)
