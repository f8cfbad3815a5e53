"""EnCodec: what is special to it. Equality with transformers is in alm_jax/interop/encodec.py's PARITY."""

import dataclasses
import functools

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


@pytest.mark.parametrize(("name", "published"), [("24khz", 14.85e6), ("nano", None)])
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


def test_codes_are_those_of_the_reference():
    """Every integer, and the waveform of the codes. No two entries are near enough for a tie."""
    config = VARIANTS["nano"]
    fields = write_encodec_config(config)
    theirs = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(0)
    reference = transformers.EncodecModel(theirs).eval()
    times = np.arange(2 * 803).reshape(2, 803) / config.sample_rate_hz
    sounds = np.sin(2 * np.pi * (300 + 9000 * times) * times) + np.random.default_rng(0).normal(
        size=times.shape
    )
    waveforms = torch.tensor(0.3 * sounds, dtype=torch.float32)
    with torch.no_grad():
        latents = reference.encoder(waveforms[:, None]).mT.flatten(0, 1)
    # Entries about where the latents are.
    for i, layer in enumerate(reference.quantizer.layers):
        layer.codebook.embed.normal_().mul_(latents.std(0)).add_(latents.mean(0) if i == 0 else 0)
    state = {key: value.numpy() for key, value in reference.state_dict().items()}
    given = jax.tree.map(jnp.asarray, arrays_to_variables(ENCODEC, config, state))
    with torch.no_grad():
        latents = reference.encoder(waveforms[:, None]).mT.flatten(0, 1)
    # Entries about where the latents are.
    for i, layer in enumerate(reference.quantizer.layers):
        layer.codebook.embed.normal_().mul_(latents.std(0)).add_(latents.mean(0) if i == 0 else 0)
    state = {key: value.numpy() for key, value in reference.state_dict().items()}
    given = jax.tree.map(jnp.asarray, arrays_to_variables(ENCODEC, config, state))
    encode = jax.jit(
        functools.partial(family.apply, FAMILY, config, method="encode"), static_argnames="bandwidth_kbps"
    )
    rate = config.bandwidths_kbps[1]
    with torch.no_grad():
        expected, scales, _ = reference.encode(waveforms[:, None], bandwidth=rate, return_dict=False)
    encode = functools.partial(family.apply, FAMILY, config, method="encode", bandwidth_kbps=rate)
    codes = jax.jit(encode)(given, jnp.asarray(waveforms.numpy()))
    np.testing.assert_array_equal(codes, expected[0])
    assert codes.shape == (2, config.codebooks_at(rate), 101)
    # Many entries are in use, or equality says little.
    assert len(np.unique(codes)) > 32
    with torch.no_grad():
        encoded = reference.decode(expected, scales, return_dict=False)[0]
    decode = jax.jit(functools.partial(family.apply, FAMILY, config, method="decode"))
    np.testing.assert_allclose(decode(given, codes), encoded[:, 0], atol=1e-5)


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
