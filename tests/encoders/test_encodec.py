"""EnCodec: what is special to it. Equality with transformers is in alm_jax/interop/encodec.py's PARITY."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.encoders import family
from alm_jax.encoders.audio.encodec import BASE, FAMILY, VARIANTS, EncodecConfig
from alm_jax.errors import UserError
from alm_jax.interop.encodec import ENCODEC, write_encodec_config
from alm_jax.interop.format import arrays_to_variables

MICRO = EncodecConfig(
    num_filters=4, strides=(3,), width=8, codebook_size=16, bandwidths_kbps=(32.0, 64.0, 128.0)
)


@pytest.mark.parametrize(
    ("name", "published"), [("24khz", 14.85e6), ("48khz", None), ("nano", None), ("nano-stereo", None)]
)
def test_every_variant_has_the_parameters_of_the_reference(name, published):
    config = VARIANTS[name]
    fields = write_encodec_config(config)
    theirs = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        reference = transformers.EncodecModel(theirs)
    variables = family.abstract(FAMILY, config)
    ours = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert ours == sum(parameter.numel() for parameter in reference.parameters())
    kept = sum(leaf.size for leaf in jax.tree.leaves(variables["batch_stats"]))
    assert kept == sum(buffer.numel() for buffer in reference.quantizer.buffers())
    if published:
        np.testing.assert_allclose(ours, published, rtol=2e-4)


def test_bit_rates_of_the_published_model():
    assert (BASE.hop_samples, BASE.num_codebooks) == (320, 32)
    assert [BASE.codebooks_at(rate) for rate in BASE.bandwidths_kbps] == [2, 4, 8, 16, 32]


@pytest.fixture(scope="module")
def variables() -> dict:
    """Weights and codebooks drawn by NumPy."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32), family.abstract(FAMILY, MICRO)
    )


@pytest.fixture(scope="module")
def waveforms() -> jax.Array:
    """Two clips of 50 samples, sixteen hops and two thirds."""
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 50)), jnp.float32)


def run(variables, *inputs, **options):
    return family.apply(FAMILY, MICRO, variables, *inputs, **options)


@pytest.mark.parametrize(("variant", "num_samples"), [("nano", 803), ("nano-stereo", 611)])
def test_codes_are_those_of_the_reference(variant, num_samples):
    """Every integer, and the waveform of the codes. No two entries are near enough for a tie.

    The stereo model has two whole pieces and one that is cut.
    """
    config = VARIANTS[variant]
    fields = write_encodec_config(config)
    theirs = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(0)
    reference = transformers.EncodecModel(theirs).eval()
    shape = (2, config.num_channels, num_samples)
    times = np.arange(math.prod(shape)).reshape(shape) / config.sample_rate_hz
    sounds = np.sin(2 * np.pi * (300 + 9000 * times) * times) + np.random.default_rng(0).normal(size=shape)
    waveforms = torch.tensor(0.3 * sounds, dtype=torch.float32)
    with torch.no_grad():
        latents = reference.encoder(waveforms / (0.36 if config.divides_by_level else 1)).mT.flatten(0, 1)
    # Entries about where the latents are.
    for i, layer in enumerate(reference.quantizer.layers):
        layer.codebook.embed.normal_().mul_(latents.std(0)).add_(latents.mean(0) if i == 0 else 0)
    state = {key: value.numpy() for key, value in reference.state_dict().items()}
    given = jax.tree.map(jnp.asarray, arrays_to_variables(ENCODEC, config, state))
    rate = config.bandwidths_kbps[1]
    with torch.no_grad():
        pieces, scales, last = reference.encode(waveforms, bandwidth=rate, return_dict=False)
        decoded = reference.decode(pieces, scales, return_dict=False, last_frame_pad_length=last)[0]
    expected = torch.cat(tuple(pieces), -1)[..., : -last or None]

    samples = jnp.asarray(waveforms[:, 0].numpy() if config.num_channels == 1 else waveforms.mT.numpy())
    encode = functools.partial(family.apply, FAMILY, config, method="encode", bandwidth_kbps=rate)
    codes = jax.jit(encode)(given, samples)
    np.testing.assert_array_equal(codes, expected)
    lengths = [length for _, length in config.pieces(num_samples)]
    assert len(lengths) == (3 if config.piece_sec else 1)
    assert codes.shape == (2, config.codebooks_at(rate), sum(-(-n // config.hop_samples) for n in lengths))
    # Many entries are in use, or equality says little.
    assert len(np.unique(codes)) > 24
    levels = None
    if config.divides_by_level:
        levels = family.apply(FAMILY, config, given, samples, method="levels")
        np.testing.assert_allclose(levels, torch.cat(scales, 1), rtol=1e-6)
    decode = functools.partial(family.apply, FAMILY, config, method="decode", num_samples=num_samples)
    ours = jax.jit(decode)(given, codes, levels=levels)
    ours = ours[:, None] if config.num_channels == 1 else ours.swapaxes(1, 2)
    np.testing.assert_allclose(ours, decoded[..., :num_samples], atol=1e-5)


def test_a_waveform_of_other_channels_or_another_length_is_refused():
    config, key = VARIANTS["nano-stereo"], jax.random.key(0)
    given = jax.eval_shape(functools.partial(family.init, FAMILY, config), key)
    run = functools.partial(family.apply, FAMILY, config)
    with pytest.raises(UserError, match="has 1 channels, the codec takes 2"):
        jax.eval_shape(run, given, jnp.zeros((1, 99)))
    decode = functools.partial(run, method="decode")
    with pytest.raises(UserError, match="decoded with num_samples"):
        jax.eval_shape(decode, given, jnp.zeros((1, 2, 9), int))
    with pytest.raises(UserError, match="99 samples have 13 codes"):
        jax.eval_shape(functools.partial(decode, num_samples=99), given, jnp.zeros((1, 2, 9), int))


def test_latents_know_nothing_of_what_follows(variables, waveforms):
    """Those of a clip's whole hops, ten here, with anything after it, under a mask or not."""
    encode = jax.jit(lambda waveforms, mask: run(variables, waveforms, mask=mask, method="embed"))
    real = jnp.arange(50)[None, :] < jnp.asarray([[50], [32]])
    latents = encode(jnp.where(real, waveforms, 9.0), real)
    silent = encode(jnp.where(real, waveforms, 0.0), jnp.ones_like(real))
    np.testing.assert_array_equal(latents, silent)
    whole = encode(waveforms, jnp.ones_like(real))
    np.testing.assert_allclose(latents[1, :10], whole[1, :10], atol=1e-6)
    assert float(jnp.abs(latents[1, 10:] - whole[1, 10:]).max()) > 1e-3


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"codebook_size": 48}, "power of two"),
        ({"bandwidths_kbps": (8.0,)}, "at least 32"),
        ({"bandwidths_kbps": (64.0, 32.0)}, "must rise"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes, match):
    with pytest.raises(UserError, match=match):
        dataclasses.replace(MICRO, **changes)


def test_a_bit_rate_that_is_not_on_offer_is_refused():
    with pytest.raises(UserError, match="not on offer"):
        MICRO.codebooks_at(3.0)
