"""Both transformer blocks against PyTorch's own encoder layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from alm_jax.nn.transformer import PostNormBlock, PreNormBlock

WIDTH, HEADS, MLP_DIM = 16, 4, 48


def build_layer(norm_first: bool) -> tuple[torch.nn.Module, dict]:
    """A layer of PyTorch with random weights, and the same weights as our parameters."""
    layer = torch.nn.TransformerEncoderLayer(
        WIDTH,
        HEADS,
        MLP_DIM,
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=1e-5,
        batch_first=True,
        norm_first=norm_first,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    state = {key: value.numpy() for key, value in layer.state_dict().items()}
    size = WIDTH // HEADS
    qkv = state["self_attn.in_proj_weight"].T.reshape(WIDTH, 3, HEADS, size)
    params = {
        "attention": {
            "qkv": {"kernel": qkv, "bias": state["self_attn.in_proj_bias"].reshape(3, HEADS, size)},
            "out": {
                "kernel": state["self_attn.out_proj.weight"].T.reshape(HEADS, size, WIDTH),
                "bias": state["self_attn.out_proj.bias"],
            },
        },
        "attention_norm": {"scale": state["norm1.weight"], "bias": state["norm1.bias"]},
        "mlp": {
            "up": {"kernel": state["linear1.weight"].T, "bias": state["linear1.bias"]},
            "down": {"kernel": state["linear2.weight"].T, "bias": state["linear2.bias"]},
        },
        "mlp_norm": {"scale": state["norm2.weight"], "bias": state["norm2.bias"]},
    }
    return layer, jax.tree.map(jnp.asarray, params)


@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
def test_block_equals_the_encoder_layer_of_pytorch(norm_first):
    layer, params = build_layer(norm_first)
    x = np.random.default_rng(0).normal(size=(3, 7, WIDTH)).astype(np.float32)
    mask = np.arange(7)[None, :] < np.array([[7], [4], [1]])
    with torch.no_grad():
        expected = layer(torch.tensor(x), src_key_padding_mask=torch.tensor(~mask)).numpy()
    dtype = jnp.dtype("float32")
    if norm_first:
        block = PreNormBlock(HEADS, MLP_DIM, 1e-5, dtype)
    else:
        block = PostNormBlock(HEADS, MLP_DIM, 1e-5, 0.0, dtype)
    actual, _ = block.apply({"params": params}, jnp.asarray(x), jnp.asarray(mask))
    np.testing.assert_allclose(np.asarray(actual)[mask], expected[mask], atol=1e-5)
