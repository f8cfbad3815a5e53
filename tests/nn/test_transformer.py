"""The post-norm block against PyTorch's own encoder layer."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from alm_jax.nn.transformer import PostNormBlock


def test_block_equals_the_encoder_layer_of_pytorch():
    width, heads, size = 16, 4, 4
    layer = torch.nn.TransformerEncoderLayer(
        width, heads, 48, dropout=0.0, activation="gelu", layer_norm_eps=1e-5, batch_first=True
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    state = {key: value.numpy() for key, value in layer.state_dict().items()}
    qkv = state["self_attn.in_proj_weight"].T.reshape(width, 3, heads, size)
    params = {
        "attention": {
            "qkv": {"kernel": qkv, "bias": state["self_attn.in_proj_bias"].reshape(3, heads, size)},
            "out": {
                "kernel": state["self_attn.out_proj.weight"].T.reshape(heads, size, width),
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
    x = np.random.default_rng(0).normal(size=(3, 7, width)).astype(np.float32)
    mask = np.arange(7)[None, :] < np.array([[7], [4], [1]])
    with torch.no_grad():
        expected = layer(torch.tensor(x), src_key_padding_mask=torch.tensor(~mask)).numpy()
    block = PostNormBlock(heads, 48, 1e-5, 0.0, jnp.dtype("float32"))
    actual, _ = block.apply({"params": jax.tree.map(jnp.asarray, params)}, jnp.asarray(x), jnp.asarray(mask))
    np.testing.assert_allclose(np.asarray(actual)[mask], expected[mask], atol=1e-5)
