"""Whisper whole: counts, and writing token by token. Equality with transformers is in its PARITY."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.encoders import family
from alm_jax.encoders.audio.whisper import WhisperEncoderConfig
from alm_jax.encoders.text.whisper_decoder import FAMILY, VARIANTS, WhisperConfig
from alm_jax.errors import UserError
from alm_jax.interop.whisper import write_whisper_config
from alm_jax.nn.kv_cache import make_cache

MICRO = WhisperConfig(
    encoder=WhisperEncoderConfig(
        num_mels=12, max_positions=20, width=16, num_layers=1, num_heads=2, mlp_dim=32
    ),
    vocab_size=30,
    num_layers=2,
    max_text_positions=12,
)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_every_variant_has_the_parameters_of_the_reference(name):
    config = VARIANTS[name]
    fields = write_whisper_config(config)
    theirs = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        reference = transformers.WhisperModel(theirs)
    ours = sum(leaf.size for leaf in jax.tree.leaves(family.abstract(FAMILY, config)["params"]))
    assert ours == sum(parameter.numel() for parameter in reference.parameters())


@pytest.fixture(scope="module")
def variables() -> dict:
    """Weights drawn by NumPy."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), family.abstract(FAMILY, MICRO)
    )


@pytest.fixture(scope="module")
def given() -> dict:
    """Two clips, the second shorter, and the words to each, the second's padded on the left."""
    rng = np.random.default_rng(1)
    return {
        "features": jnp.asarray(rng.normal(size=(2, 40, 12)), jnp.float32),
        "features_mask": jnp.arange(40)[None, :] < jnp.asarray([[40], [21]]),
        "ids": jnp.asarray(rng.integers(0, 30, size=(2, 7)), jnp.int32),
        "mask": jnp.arange(7)[None, :] >= jnp.asarray([[0], [2]]),
    }


def run(variables, *inputs, **options):
    return family.apply(FAMILY, MICRO, variables, *inputs, **options)


def test_word_by_word_is_what_reading_at_once_is(variables, given):
    """A prompt of four tokens and three steps, the audio heard once; and what lies after a clip's end is not heard."""

    @jax.jit
    def at_once(variables, given):
        return run(
            variables, given["features"], given["ids"], given["mask"], features_mask=given["features_mask"]
        )

    @jax.jit
    def prefill(variables, given):
        audio = run(variables, given["features"], given["features_mask"], method="encode")
        return run(
            variables,
            given["ids"][:, :4],
            given["mask"][:, :4],
            audio=audio,
            audio_mask=given["features_mask"][:, ::2],
            cache=make_cache(MICRO.cache_shape, 2, 10, jnp.float32),
            method="decode",
        )

    @jax.jit
    def step(variables, cache, ids, mask):
        return run(variables, ids, mask, cache=cache, output="last", method="decode")

    filled = jnp.where(given["features_mask"][:, :, None], given["features"], 9.0)
    expected = at_once(variables, given | {"features": filled})
    logits, cache = prefill(variables, given)
    real = np.asarray(given["mask"])
    np.testing.assert_allclose(logits[real[:, :4]], expected[:, :4][real[:, :4]], atol=1e-5)
    table = variables["params"]["decoder"]["token_embed"]["embedding"]
    for i in range(4, 7):
        state, cache = step(variables, cache, given["ids"][:, i : i + 1], given["mask"][:, i : i + 1])
        np.testing.assert_allclose(state @ table.T, expected[:, i], atol=1e-5)
    assert step._cache_size() == 1


def test_what_cannot_be_read_is_refused(variables, given):
    ids, mask = given["ids"], given["mask"]
    audio = jnp.zeros((2, 5, 16))
    with pytest.raises(UserError, match="either the encoder's states"):
        run(variables, ids, mask, method="decode")
    cache = make_cache(MICRO.cache_shape, 2, 13, jnp.float32)
    with pytest.raises(UserError, match="positions for 12"):
        run(variables, ids, mask, audio=audio, cache=cache, method="decode")
    with pytest.raises(UserError, match="does not pool"):
        WhisperConfig(encoder=dataclasses.replace(MICRO.encoder, pool_size=2))
