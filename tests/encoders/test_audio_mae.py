"""AudioMAE's encoder against ViT-MAE of transformers in PyTorch."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.bench.counting import count
from alm_jax.encoders.audio.audio_mae import (
    BASE,
    NANO,
    VARIANTS,
    AudioMae,
    AudioMaeConfig,
    compute_positions,
)
from alm_jax.errors import UserError
from alm_jax.ops.patch_masking import keep_lowest, mask_unstructured, num_kept, take_patches
from alm_jax.training.mesh import MeshConfig, build_mesh
from alm_jax.training.sharding import check_sharded, is_axes, parameter_shardings

FLOAT32 = jnp.dtype("float32")
MICRO = AudioMaeConfig(
    num_frames=64, num_mels=16, patch_size=4, width=16, num_layers=2, num_heads=2, mlp_dim=32
)


def build_reference(config: AudioMaeConfig, image_size: tuple[int, int]) -> torch.nn.Module:
    """ViTMAEModel of that shape, in evaluation mode."""
    return transformers.ViTMAEModel(
        transformers.ViTMAEConfig(
            image_size=image_size,
            patch_size=config.patch_size,
            num_channels=1,
            hidden_size=config.width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.mlp_dim,
            layer_norm_eps=config.layer_norm_eps,
            mask_ratio=0.8,
            attn_implementation="eager",
        )
    ).eval()


def abstract(config: AudioMaeConfig, output: str = "clip") -> dict:
    features = jax.ShapeDtypeStruct((1, config.num_frames, config.num_mels), jnp.float32)
    return jax.eval_shape(AudioMae(config, FLOAT32, output).init, jax.random.key(0), features)


def size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("name", "published"), [("base", 85.66e6), ("nano", None)])
def test_every_variant_has_the_parameters_of_the_reference(name, published):
    """Their fixed positions are parameters, and on a square grid here; ours are a constant."""
    config = VARIANTS[name]
    with torch.device("meta"):
        reference = build_reference(config, (4 * config.patch_size,) * 2)
    positions = reference.embeddings.position_embeddings.numel()
    theirs = sum(parameter.numel() for parameter in reference.parameters()) - positions
    ours = size(abstract(config))
    assert ours == theirs
    if published:
        np.testing.assert_allclose(ours + (config.num_patches + 1) * config.width, published, rtol=2e-4)


def load(config: AudioMaeConfig, reference: torch.nn.Module) -> dict:
    """Our parameters from the reference's, written out by hand."""
    state = {key: value.detach().numpy() for key, value in reference.state_dict().items()}
    heads = (config.num_heads, config.width // config.num_heads)
    layers = config.num_layers

    def linear(name: str) -> dict:
        names = [f"layers.{i}.{name}" for i in range(layers)]
        return {
            "kernel": np.stack([state[f"{layer}.weight"].T for layer in names]),
            "bias": np.stack([state[f"{layer}.bias"] for layer in names]),
        }

    def norm(name: str) -> dict:
        both = linear(name)
        return {"scale": both["kernel"], "bias": both["bias"]}

    qkv = [linear(f"attention.{name}_proj") for name in "qkv"]
    out = linear("attention.o_proj")
    projection = state["embeddings.patch_embeddings.projection.weight"]
    return {
        "cls_token": state["embeddings.cls_token"].reshape(-1),
        "patch_embed": {
            "kernel": projection.reshape(config.width, -1).T,
            "bias": state["embeddings.patch_embeddings.projection.bias"],
        },
        "blocks": {
            "attention_norm": norm("layernorm_before"),
            "attention": {
                "qkv": {
                    "kernel": np.stack([p["kernel"] for p in qkv], 2).reshape(
                        layers, config.width, 3, *heads
                    ),
                    "bias": np.stack([p["bias"] for p in qkv], 1).reshape(layers, 3, *heads),
                },
                "out": {"kernel": out["kernel"].reshape(layers, *heads, config.width), "bias": out["bias"]},
            },
            "mlp_norm": norm("layernorm_after"),
            "mlp": {"up": linear("mlp.fc1"), "down": linear("mlp.fc2")},
        },
        "norm": {"scale": state["layernorm.weight"], "bias": state["layernorm.bias"]},
    }


def draw_reference(config: AudioMaeConfig) -> torch.nn.Module:
    """The reference with random weights and our positions."""
    reference = build_reference(config, (config.num_frames, config.num_mels))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            scale = 0.3 if parameter.ndim == 1 else math.prod(parameter.shape[1:]) ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            if "norm" in name and "weight" in name:
                parameter.add_(1.0)
        positions = np.pad(compute_positions(config), ((1, 0), (0, 0)))
        reference.embeddings.position_embeddings.copy_(torch.tensor(positions)[None])
    return reference


def test_tokens_and_clip_vector_equal_the_reference():
    config = dataclasses.replace(NANO, compat=True)
    reference = draw_reference(config)
    params = {"params": jax.tree.map(jnp.asarray, load(config, reference))}
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, config.num_frames, config.num_mels)).astype(np.float32)
    noise = rng.random((3, config.num_patches)).astype(np.float32)
    images = torch.tensor(features)[:, None]
    with torch.no_grad():
        expected = reference(images, noise=torch.tensor(noise)).last_hidden_state
    ids = keep_lowest(jnp.asarray(noise), num_kept(config.num_patches, 0.8)).visible_ids
    actual = jax.jit(AudioMae(config, FLOAT32, "tokens").apply)(params, features, visible_ids=ids)
    assert actual.shape == (3, 1 + 12, config.width)
    np.testing.assert_allclose(actual, expected, atol=1e-5)

    # All patches, and fine-tuning's fc_norm: the norm of their mean, without the class token.
    reference.config.mask_ratio = 0.0
    reference.layernorm.register_forward_pre_hook(lambda norm, inputs: inputs[0][:, 1:].mean(1, keepdim=True))
    with torch.no_grad():
        expected = reference(images).last_hidden_state[:, 0]
    actual = jax.jit(AudioMae(config, FLOAT32).apply)(params, features)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_released_positions_lie_on_the_transposed_grid():
    """Token i of the 64 x 8 grid has the position of row i // 64, column i % 64; mended, its own."""
    frequency = 10000.0 ** (-np.arange(192) / 192)

    def encode(row: int, column: int) -> np.ndarray:
        angles = [column * frequency, row * frequency]
        return np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)])

    mended, released = compute_positions(BASE), compute_positions(dataclasses.replace(BASE, compat=True))
    assert mended.shape == released.shape == (512, 768)
    for token in (0, 1, 8, 63, 64, 300, 511):
        np.testing.assert_allclose(released[token], encode(token // 64, token % 64), atol=1e-5)
        np.testing.assert_allclose(mended[token], encode(token // 8, token % 8), atol=1e-5)


@pytest.fixture(scope="module")
def params() -> dict:
    """Weights drawn by NumPy."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32), nn.unbox(abstract(MICRO))
    )


@pytest.fixture(scope="module")
def features() -> jax.Array:
    """Three clips as long as the encoder takes."""
    return jnp.asarray(np.random.default_rng(1).normal(size=(3, 64, 16)), jnp.float32)


def apply(params: dict, features: jax.Array, output: str = "clip", **kwargs) -> jax.Array:
    return AudioMae(MICRO, FLOAT32, output).apply(params, features, **kwargs)


def test_padding_changes_nothing(params, features):
    """A short clip alone, and filled up with anything under the mask, alone and among others."""
    real = jnp.arange(64)[None, :] < jnp.asarray([[64], [40], [16]])  # grid 16 x 4: 64, 40 and 16 patches
    filled = jnp.where(jnp.repeat(real[:, ::4], 4, axis=1)[:, :, None], features, 77.0)
    draw = jax.jit(lambda features, mask: apply(params, features, mask=mask))
    clips = draw(filled, real)
    alone = jax.jit(lambda features: apply(params, features))(features[1:2, :40])
    np.testing.assert_allclose(clips[1], alone[0], atol=2e-5)
    order = jnp.asarray([2, 0, 1])
    moved = draw(filled[order], real[order])
    np.testing.assert_allclose(moved, clips[order], atol=1e-6)


def test_masks_are_those_of_the_visible_patches(params, features):
    real = jnp.arange(64)[None, :] < jnp.asarray([[64], [40], [16]])
    ids = mask_unstructured(jax.random.key(0), 3, 64, 0.5).visible_ids
    draw = jax.jit(lambda features: apply(params, features, "tokens", mask=real, visible_ids=ids))
    tokens, spoilt = draw(features), draw(jnp.where(jnp.arange(64)[None, :, None] < 40, features, 9.0))
    np.testing.assert_allclose(spoilt[1, 0], tokens[1, 0], atol=1e-6)
    kept = np.asarray(take_patches(real, ids))[1]
    np.testing.assert_allclose(spoilt[1, 1:][kept], tokens[1, 1:][kept], atol=1e-6)
    assert np.abs(spoilt[0] - tokens[0]).max() > 0.1


def test_every_parameter_gets_a_gradient_and_blocks_are_computed_again_where_asked(params, features):
    ids = mask_unstructured(jax.random.key(0), 3, 64, 0.8).visible_ids

    def gradient(params, remat):
        model = AudioMae(MICRO, FLOAT32, "tokens", remat)
        return jax.grad(lambda params: jnp.sum(jnp.sin(model.apply(params, features, visible_ids=ids))))(
            params
        )

    for path, grad in jax.tree.leaves_with_path(jax.jit(gradient, static_argnums=1)(params, "block")):
        assert np.abs(grad).max() > 1e-4, jax.tree_util.keystr(path)
    flops = [count(functools.partial(gradient, remat=remat), params).flops for remat in ("none", "block")]
    # The blocks' own forward pass once more, of three passes.
    assert 1.25 < flops[1] / flops[0] < 4 / 3


def test_the_hidden_patches_cost_nothing():
    """At 80 % masking the published encoder does at most a quarter of the work, forward and with gradients."""
    model = AudioMae(BASE, jnp.dtype("bfloat16"), "tokens")
    variables = nn.unbox(abstract(BASE))
    features = jax.ShapeDtypeStruct((1, 1024, 128), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, num_kept(BASE.num_patches, 0.8)), jnp.int32)

    def forward(variables, features, ids=None):
        return jnp.sum(model.apply(variables, features, visible_ids=ids).astype(jnp.float32))

    whole, masked = count(forward, variables, features).flops, count(forward, variables, features, ids).flops
    # By hand: 12 layers of 12 D^2 a token and twice N D a pair of tokens, and the patches' embedding.
    for flops, tokens in ((whole, 513), (masked, 103)):
        by_hand = 12 * (24 * tokens * 768**2 + 4 * tokens**2 * 768) + 2 * (tokens - 1) * 256 * 768
        np.testing.assert_allclose(flops, by_hand, rtol=1e-9)
    assert masked / whole <= 0.25
    both = [count(jax.grad(forward), variables, *inputs).flops for inputs in ((features, ids), (features,))]
    assert both[0] / both[1] <= 0.25


def test_bfloat16_stays_close_and_comes_out_as_such(params, features):
    exact = jax.jit(apply)(params, features)
    rounded = jax.jit(AudioMae(MICRO, jnp.dtype("bfloat16")).apply)(params, features)
    assert rounded.dtype == jnp.bfloat16
    # Numbers up to 1.9 with 8 bits through two layers: 0.0041 measured.
    np.testing.assert_allclose(rounded.astype(jnp.float32), exact, atol=0.015)


def test_initial_weights_are_those_of_mae():
    features = jnp.zeros((1, 64, 16))
    params = nn.unbox(jax.jit(AudioMae(MICRO, FLOAT32).init)(jax.random.key(0), features))["params"]
    up = params["blocks"]["mlp"]["up"]["kernel"]
    assert up.shape == (2, 16, 32)
    assert not bool(jnp.any(up[0] == up[1]))
    bound = math.sqrt(6 / (16 + 32))  # Xavier's, uniform
    assert 0.95 * bound < float(jnp.max(jnp.abs(up))) <= bound
    qkv = params["blocks"]["attention"]["qkv"]["kernel"]
    assert float(jnp.max(jnp.abs(qkv))) <= math.sqrt(6 / (16 + 48))


def test_the_published_size_is_cut_over_a_mesh():
    mesh = build_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    boxed = abstract(BASE)["params"]
    axes = jax.tree.map(
        lambda leaf: tuple(leaf.names),
        boxed,
        is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned),
    )
    plain = nn.unbox(boxed)
    assert jax.tree.structure(axes, is_leaf=is_axes) == jax.tree.structure(plain)
    shardings = parameter_shardings(axes, plain, mesh)
    check_sharded(axes, plain, shardings, mesh)
    assert tuple(shardings["blocks"]["mlp"]["up"]["kernel"].spec) == (None, "fsdp", "tensor")


@pytest.mark.parametrize("shape", [(1, 68, 16), (1, 62, 16), (1, 64, 12)])
def test_features_that_do_not_fit_are_refused(params, shape):
    with pytest.raises(UserError, match="multiple of 4 up to 64 frames of 16"):
        apply(params, jnp.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_heads": 3}, "multiple of num_heads"),
        ({"width": 18, "num_heads": 1}, "of 4"),
        ({"num_frames": 66}, "multiples of patch_size"),
        ({"num_mels": 18}, "multiples of patch_size"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes, match):
    with pytest.raises(UserError, match=match):
        dataclasses.replace(MICRO, **changes)
