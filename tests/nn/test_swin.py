"""The parts of Swin against transformers' ClapAudioModel in PyTorch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import ClapAudioConfig
from transformers.models.clap import modeling_clap

from alm_jax.nn.swin import (
    PatchMerging,
    SwinBlock,
    join_windows,
    relative_position_index,
    shift_mask,
    split_windows,
)

FLOAT32 = jnp.dtype("float32")


def test_windows_are_those_of_the_reference_and_join_back():
    x = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
    windows = split_windows(jnp.asarray(x), 4)
    expected = modeling_clap.window_partition(torch.tensor(x), 4).reshape(2, 6, 16, 3)
    np.testing.assert_array_equal(windows, expected)
    np.testing.assert_array_equal(join_windows(windows, 4, 8, 12), x)


def build_reference(window_size: int, shift_size: int, side: int) -> modeling_clap.ClapAudioLayer:
    """A block of the reference with random weights, norms and tables included."""
    config = ClapAudioConfig(window_size=window_size)
    layer = modeling_clap.ClapAudioLayer(config, 16, (side, side), num_heads=2, shift_size=shift_size).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return layer


@pytest.mark.parametrize("window", [4, 8])
def test_relative_positions_are_numbered_as_in_the_reference(window):
    layer = build_reference(window, 0, 16)
    expected = layer.attention.self.create_relative_position_index()
    np.testing.assert_array_equal(relative_position_index(window), expected)


@pytest.mark.parametrize(("window", "side"), [(4, 8), (4, 16), (8, 16)])
def test_shift_mask_is_that_of_the_reference(window, side):
    layer = build_reference(window, window // 2, side)
    expected = layer.get_attn_mask(side, side, torch.float32, torch.device("cpu"))
    np.testing.assert_array_equal(shift_mask(side, side, window, window // 2), expected == 0)


@pytest.mark.parametrize(
    ("window", "side", "shifted"), [(4, 8, False), (4, 8, True), (4, 4, True), (8, 16, True)]
)
def test_block_equals_the_reference(window, side, shifted):
    """A shifted block whose map is one window does not shift."""
    layer = build_reference(window, window // 2 if shifted else 0, side)
    block = SwinBlock(
        num_heads=2,
        window_size=window,
        shifted=shifted,
        mlp_dim=64,
        drop_path_rate=0.5,  # must not matter outside training
        use_qkv_bias=True,
        dtype=FLOAT32,
    )
    state = {key: value.detach().numpy() for key, value in layer.state_dict().items()}
    qkv = [state[f"attention.self.{name}.weight"].T.reshape(16, 2, 8) for name in ("query", "key", "value")]
    qkv_bias = [state[f"attention.self.{name}.bias"].reshape(2, 8) for name in ("query", "key", "value")]

    def linear(name: str) -> dict:
        return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}

    def norm(name: str) -> dict:
        return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}

    out = linear("attention.output.dense")
    params = {
        "attention_norm": norm("layernorm_before"),
        "attention": {
            "qkv": {"kernel": np.stack(qkv, axis=1), "bias": np.stack(qkv_bias)},
            "out": {"kernel": out["kernel"].reshape(2, 8, 16), "bias": out["bias"]},
        },
        "relative_position_bias": state["attention.self.relative_position_bias_table"],
        "mlp_norm": norm("layernorm_after"),
        "mlp": {"up": linear("intermediate.dense"), "down": linear("output.dense")},
    }
    x = np.random.default_rng(0).normal(size=(2, side, side, 16)).astype(np.float32)
    with torch.no_grad():
        expected = layer(torch.tensor(x).reshape(2, side * side, 16), (side, side))[0]
    actual = jax.jit(lambda p, x: block.apply({"params": p}, x, False))(params, jnp.asarray(x))
    np.testing.assert_allclose(actual.reshape(2, -1, 16), expected, atol=1e-5)


def test_drop_path_acts_on_both_branches_in_training_only():
    """At a rate of 1/2, an example in four loses both branches and passes through unchanged."""
    block = SwinBlock(
        num_heads=2,
        window_size=4,
        shifted=False,
        mlp_dim=32,
        drop_path_rate=0.5,
        use_qkv_bias=True,
        dtype=FLOAT32,
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=(400, 4, 4, 8)), jnp.float32)
    shapes = nn.unbox(jax.eval_shape(lambda: block.init(jax.random.key(0), x[:1], False)))
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1, leaf.dtype), shapes)
    out = jax.jit(lambda key: block.apply(variables, x, True, rngs={"dropout": key}))(jax.random.key(1))
    unchanged = np.asarray(jnp.all(out == x, axis=(1, 2, 3)))
    # 400 draws of probability 1/4: the standard deviation of the mean is 0.022.
    assert abs(unchanged.mean() - 0.25) < 0.1
    with pytest.raises(Exception, match="dropout"):
        block.apply(variables, x, True)


def test_patch_merging_equals_the_reference():
    reference = modeling_clap.ClapAudioPatchMerging(6)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    x = np.random.default_rng(0).normal(size=(2, 4, 8, 6)).astype(np.float32)
    expected = reference(torch.tensor(x).reshape(2, 32, 6), (4, 8)).detach()
    params = {
        "norm": {"scale": reference.norm.weight, "bias": reference.norm.bias},
        "reduction": {"kernel": reference.reduction.weight.T},
    }
    params = jax.tree.map(lambda p: jnp.asarray(p.detach().numpy()), params)
    actual = PatchMerging(FLOAT32).apply({"params": params}, jnp.asarray(x))
    assert actual.shape == (2, 2, 4, 12)
    np.testing.assert_allclose(actual.reshape(2, 8, 12), expected, atol=1e-5)
