"""Evaluation reads the part of a recording that the front-end's ``eval_crop`` says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.bench.step import example_batch
from alm_jax.models.capabilities import EmbedsAudio, TextTokens
from alm_jax.objectives import build_objective
from alm_jax.objectives.recordings import Clips, embed_chunks, one_clip

TOKENS = TextTokens((0,), (2,), 1)


def cut_by(config, crop):
    """The config of an objective with another ``eval_crop``."""
    model = config.objective.model
    clip = dataclasses.replace(model.frontend.clip, eval_crop=crop)
    frontend = dataclasses.replace(model.frontend, clip=clip)
    return dataclasses.replace(config.objective, model=dataclasses.replace(model, frontend=frontend))


def long_batch(config, rng):
    """Recordings three clips long."""
    batch = example_batch(config)
    rows, samples = len(batch["mask"]), 3 * config.objective.model.frontend.clip_samples
    audio = rng.normal(0, 3000, (rows, samples)).astype(np.int16)
    return {**batch, "audio": audio, "audio_num_samples": np.full(rows, samples, np.int32)}


@pytest.mark.parametrize("crop", ["first", "centre"])
def test_the_validation_loss_reads_that_part_and_no_other(tiny_name, crop, load_tiny, rng):
    config = load_tiny(tiny_name)
    batch = long_batch(config, rng)
    frontend = config.objective.model.frontend
    start = 0 if crop == "first" else frontend.clip_samples
    inside = np.zeros(batch["audio"].shape, bool)
    inside[:, start : start + frontend.clip_samples] = True
    prepare = build_objective(cut_by(config, crop)).prepare

    @jax.jit
    def rows(batch):
        return prepare(batch, None, train=False).rows

    whole = rows(batch)
    others = rows({**batch, "audio": np.where(inside, batch["audio"], 77).astype(np.int16)})
    jax.tree.map(np.testing.assert_array_equal, whole, others)
    changed = rows({**batch, "audio": np.where(inside, 77, batch["audio"]).astype(np.int16)})
    assert any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (whole, changed)), strict=True))


@pytest.mark.parametrize("is_unit", [False, True])
def test_vectors_of_chunks_are_averaged_over_those_that_are_real(is_unit, load_tiny, rng):
    config = load_tiny("tiny_masked_spectrogram")
    frontend = cut_by(config, "chunks").model.frontend
    batch = long_batch(config, rng)
    clip = frontend.clip_samples
    lengths = np.full(len(batch["mask"]), 3 * clip, np.int32)
    lengths[0] = clip
    batch["audio_num_samples"] = lengths

    def encode(clips: Clips):
        vectors = jnp.mean(clips.features, axis=1)
        return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True) if is_unit else vectors

    batch = jax.tree.map(jnp.asarray, batch)
    found = embed_chunks(encode, frontend, batch, padding="unmasked", is_unit=is_unit)
    chunks = [
        np.asarray(
            encode(
                one_clip(
                    frontend,
                    {
                        "audio": batch["audio"][:, start : start + clip],
                        "audio_num_samples": jnp.full(len(lengths), clip, jnp.int32),
                    },
                    padding="unmasked",
                )
            )
        )
        for start in (0, clip, 2 * clip)
    ]
    expected = np.mean(chunks, axis=0)
    expected[0] = chunks[0][0]
    if is_unit:
        expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_every_model_that_embeds_takes_all_chunks(tiny_name, load_tiny):
    """By the rows that its encoder is given."""
    config = load_tiny(tiny_name)
    objective = build_objective(cut_by(config, "chunks"))
    model = objective.capabilities(TOKENS)
    if not isinstance(model, EmbedsAudio):
        pytest.skip("the model does not embed")
    clip = config.objective.model.frontend.clip_samples
    batch = {
        "audio": jax.ShapeDtypeStruct((2, 3 * clip), jnp.int16),
        "audio_num_samples": jax.ShapeDtypeStruct((2,), jnp.int32),
    }
    variables = jax.eval_shape(objective.init, jax.random.key(0))
    jaxpr = str(jax.make_jaxpr(model.embed_audio)(variables, batch))
    assert f"i16[6,{clip}]" in jaxpr or f"f32[6,{clip}]" in jaxpr
    assert jax.eval_shape(model.embed_audio, variables, batch).shape[0] == 2
