"""Evaluation of CTAL's encoders: vectors of speech, what a transcript gives to it, and what it draws."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from alm_jax import batch as contract
from alm_jax.evaluation.masked_spectrogram import Reconstruction
from alm_jax.evaluation.metrics.linear_probe import evaluation_crop
from alm_jax.models import ctal
from alm_jax.models.ctal import CtalModelConfig
from alm_jax.nn.pooling import masked_mean
from alm_jax.objectives.ctal import CtalConfig, encode_rows, prepare_rows
from alm_jax.objectives.masked_text import words_right
from alm_jax.objectives.objective import Loss
from alm_jax.objectives.recordings import cut_clips
from alm_jax.ops.frontends import compute_features


@functools.partial(jax.jit, static_argnums=0)
def embed_speech(
    config: CtalModelConfig, variables: dict[str, Any], batch: dict[str, Array], text_ids: Int[Array, " L"]
) -> Float[Array, "B D"]:
    """The mean of the states of each recording's real frames, given one and the same text for all; float32."""
    spec = config.frontend
    clips, _, num_real = cut_clips(spec, batch, crop=evaluation_crop(spec))
    features, frame_mask = compute_features(clips[:, 0], spec), ctal.real_frames(config, num_real)
    ids = jnp.broadcast_to(text_ids[None], (len(features), len(text_ids)))
    text_mask = jnp.ones_like(ids, jnp.bool_)
    text = ctal.encode_text(config, variables, ids, text_mask)
    states = ctal.encode_audio(config, variables, features, frame_mask, text, text_mask)
    return masked_mean(states.astype(jnp.float32), frame_mask)


@functools.partial(jax.jit, static_argnums=0)
def measure_masked(config: CtalConfig, variables: dict[str, Any], batch: dict[str, Array]) -> dict[str, Loss]:
    """Loss and accuracy of hidden words, and the L1 of hidden frames: given the transcript, and with all words hidden.

    The masks are those of the validation loss; words hear nothing.
    """
    rows = prepare_rows(config, batch, None, train=False)
    params, ids, real = variables["params"], batch[contract.TEXT_IDS], batch[contract.MASK]
    whole, _ = encode_rows(config, variables, rows._replace(text_ids=ids), train=False)
    is_word = config.masked_text.is_word(ids, rows.text_mask)
    wordless = rows._replace(text_ids=jnp.where(is_word, config.masked_text.mask_id, ids))
    hidden, _ = encode_rows(config, variables, wordless, train=False)
    masked, _ = encode_rows(config, variables, rows, train=False)
    counted = rows.text_chosen & real[:, None]

    def over_rows(loss: Loss) -> Loss:
        return Loss(*(jnp.sum(jnp.where(real, x, 0.0)) for x in loss))

    return {
        "masked_text/accuracy": words_right(masked.words, *ctal.word_table(params), ids, counted),
        "masked_audio/l1": over_rows(whole.acoustic),
        "masked_audio/l1_words_hidden": over_rows(hidden.acoustic),
    }


def draw(config: CtalConfig, variables: dict[str, Any], batch: Mapping[str, np.ndarray]) -> Reconstruction:
    """The levels, without their deltas, of a batch's recordings; hidden are the spans that were chosen."""
    return jax.tree.map(np.asarray, _draw(config, variables, jax.tree.map(jnp.asarray, dict(batch))))


@functools.partial(jax.jit, static_argnums=0)
def _draw(config: CtalConfig, variables: dict[str, Any], batch: dict[str, Array]) -> Reconstruction:
    rows = prepare_rows(config, batch, None, train=False)
    _, drawn = encode_rows(config, variables, rows, train=False)
    num_mels = config.model.frontend.num_mels
    features = rows.features[..., :num_mels]
    hidden = jnp.broadcast_to(rows.frames.chosen[..., None], features.shape)
    return Reconstruction(features, hidden, drawn[..., :num_mels].astype(jnp.float32))
