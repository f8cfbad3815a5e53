"""HTSAT with feature fusion: sizes and training statistics of transformers' ClapAudioModel, and what changes a row.

That its numbers are those of `transformers.ClapModel` is shown by tests/interop/test_parity.py.
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

from alm_jax.encoders import family
from alm_jax.encoders.audio.htsat import Htsat
from alm_jax.encoders.audio.htsat_fusion import FAMILY, VARIANTS, HtsatFusion, HtsatFusionConfig
from alm_jax.errors import UserError
from alm_jax.nn.feature_fusion import FeatureFusion
from alm_jax.nn.norm import feature_moments

FLOAT32 = jnp.dtype("float32")
MICRO = HtsatFusionConfig(
    spec_size=64,
    num_mels=16,
    embed_dim=8,
    depths=(1, 1),
    num_heads=(1, 2),
    window_size=4,
    drop_path_rate=0.0,
    spec_augment_time_stripes=0,
    spec_augment_freq_stripes=0,
)


def as_clap(config: HtsatFusionConfig) -> ClapAudioConfig:
    return ClapAudioConfig(
        enable_fusion=True,
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
    with torch.device("meta"):
        reference = modeling_clap.ClapAudioModel(as_clap(config))
    shapes = family.abstract(FAMILY, config)
    ours = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert ours == sum(parameter.numel() for parameter in reference.parameters())
    if name == "tiny":
        np.testing.assert_allclose(ours, 27.55e6, rtol=1e-3)
    buffers = [tensor for key, tensor in reference.named_buffers() if "running" in key]
    statistics = sum(leaf.size for leaf in jax.tree.leaves(shapes["batch_stats"]))
    assert statistics == sum(tensor.numel() for tensor in buffers)


@pytest.fixture(scope="module")
def variables() -> dict:
    """Weights drawn by NumPy."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.1, 0.5, leaf.shape), jnp.float32),
        family.abstract(FAMILY, MICRO),
    )


@pytest.fixture(scope="module")
def features() -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(4, 4, 100, 16)), jnp.float32)


@pytest.fixture(scope="module")
def run(variables):
    @jax.jit
    def apply(features, longer):
        return HtsatFusion(MICRO, FLOAT32).apply(variables, features, longer)

    return apply


def test_what_is_no_longer_than_a_clip_is_an_htsat_of_its_first_map(run, variables, features):
    plain = {
        "params": {k: v for k, v in variables["params"].items() if k not in ("part_embed", "fusion")},
        "batch_stats": {"feature_norm": variables["batch_stats"]["feature_norm"]},
    }
    expected = jax.jit(Htsat(MICRO, FLOAT32).apply)(plain, features[:, 0])
    longer = jnp.asarray([False, True, False, True])
    actual = run(features, longer)
    np.testing.assert_allclose(actual[~longer], expected[~longer], atol=1e-5)
    assert np.min(np.max(np.abs(actual - expected)[longer], axis=-1)) > 1e-3
    np.testing.assert_allclose(run(features, None), expected, atol=1e-5)


def test_training_statistics_of_the_fusion_are_those_of_pytorch():
    """Of the longer rows alone, in the reference by indexing."""
    torch.manual_seed(0)
    reference = modeling_clap.ClapAudioAFFBlock(as_clap(MICRO))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 6, 5, 5, 8)).astype(np.float32)
    longer = np.array([True, True, False, True, False, False])
    theirs = reference(*(torch.tensor(array[longer]).permute(0, 3, 1, 2) for array in (x, y)))

    params, stats = {}, {}
    for path, name, first in (("local_att", "local", 0), ("global_att", "global", 1)):
        layers = getattr(reference, path)
        params[name], stats[name] = {}, {}
        for layer, index in (("down", first), ("up", first + 3)):
            conv, norm = layers[index], layers[index + 1]
            params[name][layer] = {
                "kernel": jnp.asarray(conv.weight.detach()[:, :, 0, 0].T.numpy()),
                "bias": jnp.asarray(conv.bias.detach().numpy()),
            }
            size = norm.num_features
            params[name][f"{layer}_norm"] = {"scale": jnp.ones(size), "bias": jnp.zeros(size)}
            stats[name][f"{layer}_norm"] = {"mean": jnp.zeros(size), "var": jnp.ones(size)}

    @jax.jit
    def train(x, y, mask):
        variables = {"params": params, "batch_stats": stats}
        return FeatureFusion(FLOAT32).apply(variables, x, y, train=True, mask=mask, mutable=["batch_stats"])

    ours, updated = train(x, y, longer)
    np.testing.assert_allclose(ours[longer], theirs.detach().permute(0, 2, 3, 1), atol=1e-5)
    for path, name, first in (("local_att", "local", 0), ("global_att", "global", 1)):
        for layer, index in (("down_norm", first + 1), ("up_norm", first + 4)):
            norm, actual = getattr(reference, path)[index], updated["batch_stats"][name][layer]
            np.testing.assert_allclose(actual["mean"], norm.running_mean, atol=1e-6)
            np.testing.assert_allclose(actual["var"], norm.running_var, rtol=1e-5)
    _, kept = train(x, y, np.zeros(6, np.bool_))
    jax.tree.map(np.testing.assert_array_equal, kept["batch_stats"], stats)


def test_only_real_rows_that_are_longer_count_in_the_statistics_of_the_fusion(variables, features):
    moments = feature_moments(features)

    @jax.jit
    def train(features, longer, mask):
        module = HtsatFusion(MICRO, FLOAT32)
        options = {"train": True, "row_mask": mask, "moments": moments, "mutable": ["batch_stats"]}
        return module.apply(variables, features, longer, **options)[1]["batch_stats"]["fusion"]

    longer, mask = jnp.asarray([True, True, True, False]), jnp.asarray([True, True, False, True])
    actual = train(features, longer, mask)
    twice = jnp.concatenate([features[:2], features[:2]])
    # The same rows twice have the same mean.
    expected = train(twice, jnp.ones(4, jnp.bool_), jnp.ones(4, jnp.bool_))
    for name in ("local", "global"):
        mean, other = actual[name]["down_norm"]["mean"], expected[name]["down_norm"]["mean"]
        np.testing.assert_allclose(mean, other, atol=1e-5)
        assert np.any(mean != variables["batch_stats"]["fusion"][name]["down_norm"]["mean"])


def test_the_maps_of_a_recording_share_its_masked_stripes(variables):
    config = dataclasses.replace(MICRO, spec_augment_time_stripes=2, spec_augment_time_width=16)

    class Prepare(HtsatFusion):
        @nn.compact
        def __call__(self, features):
            return self.prepare(features, True, None, None)

    features = jnp.asarray(np.random.default_rng(2).normal(size=(3, 4, config.num_frames, 16)), jnp.float32)
    x, _ = jax.jit(
        lambda: Prepare(config, FLOAT32).apply(
            variables, features, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"]
        )
    )()
    masked = np.all(np.asarray(x) == 0, axis=-1)
    assert masked.any()
    np.testing.assert_array_equal(masked, np.broadcast_to(masked[:, :1], masked.shape))
    assert (masked[0] != masked[1]).any()


def test_another_number_of_maps_is_refused(variables):
    # The annotation says 4 as well: in tests it refuses first.
    with pytest.raises((UserError, TypeError), match=r"3 maps|4 T F"):
        HtsatFusion(MICRO, FLOAT32).apply(variables, jnp.zeros((1, 3, 50, 16)))
