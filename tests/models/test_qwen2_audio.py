"""Qwen2-Audio: its size, recordings in their slots, and reading on from a cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.encoders import family
from alm_jax.encoders.audio import whisper
from alm_jax.encoders.text import llama
from alm_jax.errors import DataError, UserError
from alm_jax.interop.qwen2_audio import write_qwen2_audio_config
from alm_jax.models import catalogue as zoo
from alm_jax.models.qwen2_audio import (
    BASE,
    FAMILY,
    NANO,
    Qwen2AudioConfig,
    count_audio_tokens,
    expand_audio_tokens,
)
from alm_jax.nn.kv_cache import make_cache
from alm_jax.training.mesh import MeshConfig, build_mesh
from alm_jax.training.sharding import parameter_shardings, replicated_fraction

AUDIO = 39
MICRO = Qwen2AudioConfig(
    encoder=dataclasses.replace(
        NANO.encoder, num_mels=5, max_positions=12, width=16, num_layers=1, num_heads=2, mlp_dim=16
    ),
    language_model=dataclasses.replace(
        NANO.language_model, vocab_size=40, width=16, num_layers=2, num_heads=2, num_kv_heads=1, mlp_dim=24
    ),
    audio_token_id=AUDIO,
)
FRAMES = np.array([[12, 9], [24, 0]])  # Of two recordings, and of one.
FRAME_MASK = jnp.asarray(np.arange(24) < FRAMES[:, :, None])


def test_the_released_size_has_the_parameters_of_the_reference():
    theirs = transformers.Qwen2AudioConfig(**write_qwen2_audio_config(BASE))
    with torch.device("meta"):
        reference = transformers.Qwen2AudioForConditionalGeneration(theirs)
    ours = sum(leaf.size for leaf in jax.tree.leaves(family.abstract(FAMILY, BASE)))
    assert ours == sum(parameter.numel() for parameter in reference.parameters()) == 8_397_094_912


def test_tokens_of_a_recording_are_those_of_transformers():
    theirs = transformers.Qwen2AudioConfig(**write_qwen2_audio_config(NANO))
    tower = transformers.Qwen2AudioForConditionalGeneration(theirs).model.audio_tower
    frames = torch.arange(1, 401)
    _, expected = tower._get_feat_extract_output_lengths(frames)
    # A recording of one or two frames has no whole pair of states; their formula gives 0 there as well.
    np.testing.assert_array_equal([count_audio_tokens(NANO, int(n)) for n in frames], expected)


@pytest.fixture(scope="module")
def variables() -> dict:
    """Weights drawn by NumPy."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32), family.abstract(FAMILY, MICRO)
    )


@pytest.fixture(scope="module")
def features() -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 2, 24, 5)), jnp.float32)


@pytest.fixture(scope="module")
def texts() -> tuple[jax.Array, jax.Array]:
    """Ids and their mask: the first text names two recordings, the second, padded on the left, one."""
    rows = [
        expand_audio_tokens(MICRO, [1, AUDIO, 2, 3, AUDIO, 4], FRAMES[0].tolist()),
        expand_audio_tokens(MICRO, [5, AUDIO, 6], FRAMES[1][:1].tolist()),
    ]
    length = max(map(len, rows))
    mask = np.arange(length) >= length - np.array([[len(row)] for row in rows])
    return jnp.asarray([np.pad(row, (length - len(row), 0)) for row in rows]), jnp.asarray(mask)


@pytest.fixture(scope="module")
def run():
    return jax.jit(lambda *inputs: family.apply(FAMILY, MICRO, *inputs))


def test_each_slot_holds_the_state_of_its_recording(variables, features, texts, run):
    """Equal to the language model alone, given vectors that NumPy puts into their places."""
    ids, mask = texts
    encoder, projector, decoder = (
        variables["params"][name] for name in ("encoder", "projector", "language_model")
    )
    encode = jax.jit(lambda x, m: family.apply(whisper.FAMILY, MICRO.encoder, {"params": encoder}, x, mask=m))
    states = np.asarray(encode(features.reshape(4, 24, 5), FRAME_MASK.reshape(4, 24)))
    states = states @ np.asarray(projector["kernel"]) + np.asarray(projector["bias"])
    embeds = np.zeros((*ids.shape, 16), np.float32)
    for row in range(2):
        encoded = [
            states[2 * row + clip, : count_audio_tokens(MICRO, int(FRAMES[row, clip]))] for clip in range(2)
        ]
        embeds[row][np.asarray(ids[row] == AUDIO)] = np.concatenate(encoded)
    read = jax.jit(
        lambda x, m: family.apply(
            llama.QWEN2, MICRO.language_model, {"params": decoder}, ids, mask, embeds=x, embeds_mask=m
        )
    )
    expected = read(jnp.asarray(embeds), ids == AUDIO)
    actual = run(variables, ids, mask, features, FRAME_MASK)
    np.testing.assert_allclose(np.asarray(actual)[mask], np.asarray(expected)[mask], atol=1e-4)


def test_a_prompt_with_audio_and_steps_give_the_logits_of_the_whole_text(variables, features, texts, run):
    ids, mask = texts
    expected = np.asarray(run(variables, ids, mask, features, FRAME_MASK))
    cut = ids.shape[1] - 1  # The last recording ends one token before the end.
    cache = make_cache(MICRO.cache_shape, 2, ids.shape[1], jnp.float32)

    def read_on(*inputs):
        return family.apply(FAMILY, MICRO, variables, *inputs[:-1], cache=inputs[-1])

    prompt, cache = jax.jit(read_on)(ids[:, :cut], mask[:, :cut], features, FRAME_MASK, cache)
    step, _ = jax.jit(read_on)(ids[:, cut:], mask[:, cut:], cache)
    actual = np.concatenate([prompt, step], axis=1)
    np.testing.assert_allclose(actual[mask], expected[mask], atol=1e-4)


def test_a_row_whose_slots_do_not_fit_its_recordings_is_not_a_number(variables, features, texts, run):
    """And the other row is what it was."""
    ids, mask = texts
    expected = run(variables, ids, mask, features, FRAME_MASK)
    fewer, none = ids.at[0, 1].set(7), jnp.where(jnp.asarray([[True], [False]]), 7, ids)
    for wrong in (fewer, none):
        actual = run(variables, wrong, mask, features, FRAME_MASK)
        assert bool(jnp.all(jnp.isnan(actual[0])))
        np.testing.assert_array_equal(np.asarray(actual[1])[mask[1]], np.asarray(expected[1])[mask[1]])


def test_texts_and_recordings_that_do_not_agree_are_refused():
    with pytest.raises(DataError, match=r"names 1 recordings .* and has 2"):
        expand_audio_tokens(MICRO, [1, AUDIO], [10, 10])
    with pytest.raises(
        DataError, match=r"has 2 frames of 10 ms, and the first state is made of 3: give one of 0\.03 s"
    ):
        expand_audio_tokens(MICRO, [1, AUDIO], [2])
    assert len(expand_audio_tokens(MICRO, [1, AUDIO], [3])) == 2
    with pytest.raises(UserError, match="not in the vocabulary of 40"):
        dataclasses.replace(MICRO, audio_token_id=40)
    ids = jnp.ones((1, 3), jnp.int32)
    with pytest.raises(UserError, match="come together"):
        family.apply(FAMILY, MICRO, {}, ids, ids > 0, jnp.zeros((1, 1, 24, 5)))


def test_it_is_in_the_zoo():
    assert zoo.FAMILIES["qwen2_audio"] is zoo.family_of(NANO) is FAMILY
    assert zoo.family_of(NANO.language_model) is llama.QWEN2
    with pytest.raises(UserError, match="belongs to no family"):
        zoo.family_of(3)


def test_the_released_size_is_cut_over_a_mesh():
    shapes, axes = family.abstract(FAMILY, BASE)["params"], family.axes(FAMILY, BASE)
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert replicated_fraction(shapes, parameter_shardings(axes, shapes, mesh)) < 0.02


def test_gradients_reach_every_parameter(variables, features, texts):
    """With rematerialisation, which both halves are given."""
    ids, mask = texts

    def loss(params):
        logits = family.apply(
            FAMILY, MICRO, {"params": params}, ids, mask, features, FRAME_MASK, remat="block"
        )
        return jnp.sum(jnp.sin(jnp.where(mask[:, :, None], logits, 0)))

    grads = jax.jit(jax.grad(loss))(variables["params"])
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.isfinite(grad).all(), jax.tree_util.keystr(path)
        assert np.any(np.asarray(grad) != 0), jax.tree_util.keystr(path)
