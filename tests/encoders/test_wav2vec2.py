"""wav2vec 2.0 and HuBERT: what is special to them. Equality with transformers is in alm_jax/interop/wav2vec2.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.bench.counting import count
from alm_jax.encoders import family
from alm_jax.encoders.audio.wav2vec2 import (
    FAMILY,
    VARIANTS,
    Wav2Vec2,
    Wav2Vec2Config,
    compute_state_mask,
)
from alm_jax.errors import UserError
from alm_jax.interop.wav2vec2 import HUBERT, WAV2VEC2

MICRO = Wav2Vec2Config(
    conv_channels=(8, 8),
    conv_windows=(5, 3),
    conv_strides=(3, 2),
    width=16,
    num_layers=3,
    num_heads=2,
    mlp_dim=32,
    position_window=6,
    position_groups=2,
)
LARGE = dataclasses.replace(MICRO, conv_norm="layer", conv_bias=True, pre_norm=True)
FLOAT32 = jnp.dtype("float32")


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("wav2vec2_base", 94.37e6),
        ("hubert_base", 94.37e6),
        ("wav2vec2_large_lv60", None),
        ("hubert_large", None),
        ("hubert_xlarge", None),
        ("nano", None),
    ],
)
def test_every_variant_has_the_parameters_of_the_reference(name, published):
    config = VARIANTS[name]
    layout = HUBERT if name.startswith("hubert") else WAV2VEC2
    fields = layout.write_config(config)
    theirs = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        reference = getattr(transformers, layout.architectures[0])(theirs)
    ours = sum(leaf.size for leaf in jax.tree.leaves(family.abstract(FAMILY, config)["params"]))
    assert ours == sum(parameter.numel() for parameter in reference.parameters())
    if published:
        np.testing.assert_allclose(ours, published, rtol=2e-4)


def draw(config: Wav2Vec2Config) -> dict:
    """Weights drawn by NumPy."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32), family.abstract(FAMILY, config)
    )


@pytest.fixture(scope="module")
def waveforms() -> jax.Array:
    """Three clips."""
    return jnp.asarray(np.random.default_rng(1).normal(size=(3, 90)), jnp.float32)


@pytest.mark.parametrize("config", [MICRO, pytest.param(LARGE, marks=pytest.mark.slow)])
def test_padding_changes_nothing(config, waveforms):
    """A clip of 64 samples alone, and followed by anything under the mask, alone and among others."""
    variables = draw(config)
    mask = jnp.arange(90)[None, :] < jnp.asarray([[90], [64], [30]])
    filled = jnp.where(mask, waveforms, 55.0)
    encode = jax.jit(lambda waveforms, mask: Wav2Vec2(config, FLOAT32).apply(variables, waveforms, mask=mask))
    states, is_real = encode(filled, mask), np.asarray(compute_state_mask(config, mask))
    alone = jax.jit(Wav2Vec2(config, FLOAT32).apply)(variables, waveforms[1:2, :64])
    assert is_real.sum(axis=1).tolist() == [14, 9, 4]
    assert alone.shape[1] == 9
    np.testing.assert_allclose(states[1, :9], alone[0], atol=2e-5)
    order = jnp.asarray([2, 0, 1])
    moved = encode(filled[order], mask[order])
    np.testing.assert_allclose(moved[0, :4], states[2, :4], atol=1e-5)


def test_the_states_of_a_layer_cost_what_the_layers_up_to_it_do(waveforms):
    """Blocks after it are not computed; that they are the reference's is a comparison of its own."""
    variables = draw(LARGE)

    def flops(layer: int | None) -> float:
        return count(
            functools.partial(Wav2Vec2(LARGE, FLOAT32).apply, layer=layer), variables, waveforms
        ).flops

    by_layer = [flops(layer) for layer in (0, 1, 2, None)]
    np.testing.assert_allclose(np.diff(by_layer), by_layer[1] - by_layer[0])
    # By hand: 12 D^2 a state (an MLP of 2 D) less 4 D^2, and 2 N D a pair.
    np.testing.assert_allclose(by_layer[1] - by_layer[0], 3 * (16 * 14 * 16**2 + 4 * 14**2 * 16))


def test_hidden_states_are_the_mask_vector(waveforms):
    """What goes into the first block is that vector there, and what the convolution of positions makes of it nearby."""
    variables = draw(LARGE)
    hidden = jnp.broadcast_to(jnp.arange(14)[None, :] == 3, (3, 14))
    encode = jax.jit(functools.partial(Wav2Vec2(LARGE, FLOAT32).apply, layer=0))
    moved = variables["params"] | {"mask_embed": variables["params"]["mask_embed"] + 5.0}
    states, other = (
        encode({"params": params}, waveforms, hidden=hidden) for params in (variables["params"], moved)
    )
    assert float(jnp.abs(states - other)[:, 3].min()) > 1.0
    np.testing.assert_array_equal(states[:, 3 + 4 :], other[:, 3 + 4 :])
    np.testing.assert_array_equal(encode(variables, waveforms)[:, 7:], states[:, 7:])


def test_one_published_state_comes_from_400_samples():
    assert VARIANTS["hubert_base"].min_samples == 400
    mask = jnp.ones((1, 16000), bool)
    assert compute_state_mask(VARIANTS["hubert_base"], mask).shape == (1, 49)


def test_what_does_not_fit_is_refused(waveforms):
    variables = draw(MICRO)
    model = Wav2Vec2(dataclasses.replace(MICRO, has_mask_embed=False), FLOAT32)
    with pytest.raises(UserError, match="one state comes from 11"):
        model.apply(variables, waveforms[:, :10])
    with pytest.raises(UserError, match="layers 0 to 3"):
        model.apply(variables, waveforms, layer=4)
    with pytest.raises(UserError, match="has_mask_embed"):
        model.apply(variables, waveforms, hidden=jnp.ones((3, 14), bool))
    with pytest.raises(UserError, match="for every convolution"):
        dataclasses.replace(MICRO, conv_strides=(3,))
    with pytest.raises(UserError, match="position_groups"):
        dataclasses.replace(MICRO, position_groups=3)
