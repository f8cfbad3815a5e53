"""HTSAT: its shapes and sizes against transformers, and what training adds to it.

That its numbers are those of `transformers.ClapAudioModel` is shown in tests/interop/test_clap_parity.py.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import ClapAudioConfig
from transformers.models.clap import modeling_clap

from alm_jax.encoders.audio.htsat import NANO, VARIANTS, Htsat, HtsatConfig, fold_to_patches
from alm_jax.errors import UserError

FLOAT32 = jnp.dtype("float32")


def as_clap(config: HtsatConfig) -> ClapAudioConfig:
    return ClapAudioConfig(
        spec_size=config.spec_size,
        patch_size=config.patch_size,
        patch_stride=[config.patch_size] * 2,
        num_mel_bins=config.num_mels,
        patch_embeds_hidden_size=config.embed_dim,
        depths=list(config.depths),
        num_attention_heads=list(config.num_heads),
        window_size=config.window_size,
        hidden_size=config.width,
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_the_parameters_of_the_reference(name):
    config = VARIANTS[name]
    features = jax.ShapeDtypeStruct((1, config.num_frames, config.num_mels), jnp.float32)
    shapes = jax.eval_shape(Htsat(config, FLOAT32).init, jax.random.key(0), features)
    with torch.device("meta"):
        reference = modeling_clap.ClapAudioModel(as_clap(config))
    ours = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert ours == sum(parameter.numel() for parameter in reference.parameters())
    published = {"tiny": 27.53e6, "base": 67.8e6}
    if name in published:
        np.testing.assert_allclose(ours, published[name], rtol=2e-3)
    output = jax.eval_shape(lambda v, x: Htsat(config, FLOAT32).apply(v, x), nn.unbox(shapes), features)
    assert output.shape == (1, config.width)


def test_fold_is_that_of_the_reference():
    """Image of the reference's encoder, cut into patches by PyTorch's unfold."""
    features = np.random.default_rng(0).normal(size=(2, NANO.num_frames, NANO.num_mels)).astype(np.float32)
    with torch.device("meta"):
        encoder = modeling_clap.ClapAudioEncoder(as_clap(NANO))
    image = encoder.reshape_mel2img(torch.tensor(features)[:, None])
    patches = torch.nn.functional.unfold(image, NANO.patch_size, stride=NANO.patch_size)  # B, pixels, patches
    actual = fold_to_patches(jnp.asarray(features), NANO.num_segments, (NANO.patch_size, NANO.patch_size))
    assert actual.shape == (2, 32, 32, 16)
    np.testing.assert_array_equal(actual.reshape(2, -1, 16), patches.transpose(1, 2))


# Two stages, a shifted block among them: enough for what training adds, and quick to compile.
MICRO = HtsatConfig(
    spec_size=32,
    num_mels=16,
    embed_dim=8,
    depths=(2, 1),
    num_heads=(1, 2),
    window_size=4,
    drop_path_rate=0.0,
    spec_augment_time_width=8,
    spec_augment_freq_width=4,
    spec_augment_freq_stripes=0,
)


@pytest.fixture(scope="module")
def variables() -> dict:
    """Weights drawn by NumPy."""
    rng = np.random.default_rng(0)
    features = jax.ShapeDtypeStruct((1, 8, MICRO.num_mels), jnp.float32)
    shapes = nn.unbox(jax.eval_shape(Htsat(MICRO, FLOAT32).init, jax.random.key(0), features))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.1, 0.5, leaf.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def features() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(-40, 15, (4, 60, MICRO.num_mels)), jnp.float32)


def run(config: HtsatConfig, variables: dict, features: jax.Array, seeds: list[int], **kwargs):
    """The clip vectors and the next running statistics for each seed."""

    @jax.jit
    def apply(key):
        model = Htsat(config, FLOAT32)
        return model.apply(variables, features, mutable=["batch_stats"], rngs={"dropout": key}, **kwargs)

    return [apply(jax.random.key(seed)) for seed in seeds]


def test_evaluation_has_no_chance_in_it_and_leaves_the_statistics_alone(variables, features):
    (one, stats), (two, _) = run(MICRO, variables, features, [0, 1])
    np.testing.assert_array_equal(one, two)
    jax.tree.map(np.testing.assert_array_equal, stats["batch_stats"], variables["batch_stats"])


def test_training_augments_and_moves_the_statistics(variables, features):
    (one, stats), (again, _), (other, _) = run(MICRO, variables, features, [0, 0, 1], train=True)
    np.testing.assert_array_equal(one, again)
    assert bool(jnp.any(one != other))
    moved = stats["batch_stats"]["feature_norm"]["mean"]
    before = variables["batch_stats"]["feature_norm"]["mean"]
    np.testing.assert_allclose(moved, 0.9 * before + 0.1 * jnp.mean(features, axis=(0, 1)), rtol=1e-5)


def test_without_stripes_and_drop_path_training_needs_no_key(variables, features):
    bare = dataclasses.replace(MICRO, spec_augment_time_stripes=0)
    apply = jax.jit(
        lambda: Htsat(bare, FLOAT32).apply(variables, features, train=True, mutable=["batch_stats"])
    )
    assert bool(jnp.all(jnp.isfinite(apply()[0])))
    with pytest.raises(Exception, match="dropout"):
        Htsat(MICRO, FLOAT32).apply(variables, features, train=True, mutable=["batch_stats"])


@pytest.mark.parametrize(("shape", "match"), [((1, 65, 16), "65 frames"), ((1, 60, 20), "20 mel bins")])
def test_features_that_do_not_fit_are_refused(variables, shape, match):
    with pytest.raises(UserError, match=match):
        Htsat(MICRO, FLOAT32).apply(variables, jnp.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"depths": (1, 1)}, "same stages"),
        ({"spec_size": 130}, "multiple of num_mels"),
        ({"num_mels": 2}, "multiple of patch_size"),
        ({"num_heads": (3, 2, 4, 8)}, "not a multiple of 3 heads"),
        ({"window_size": 8}, "4 x 4 tokens cannot be cut into windows of 8"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes, match):
    with pytest.raises(UserError, match=match):
        dataclasses.replace(NANO, **changes)
