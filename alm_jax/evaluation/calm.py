"""Evaluation of a CALM-style head: its embeddings, what one modality gives to the other, and what it draws."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from alm_jax import batch as contract
from alm_jax.evaluation.masked_spectrogram import Reconstruction, to_maps
from alm_jax.evaluation.metrics.linear_probe import evaluation_crop
from alm_jax.models import one_head
from alm_jax.models.one_head import Audio, OneHeadConfig, Text
from alm_jax.objectives.calm import CalmConfig, encode_rows, masked_losses, prepare_rows
from alm_jax.objectives.masked_text import words_right
from alm_jax.objectives.objective import Loss
from alm_jax.objectives.recordings import cut_clips
from alm_jax.ops.frontends import compute_features


@functools.partial(jax.jit, static_argnums=0)
def embed_recordings(
    config: OneHeadConfig, variables: dict[str, Any], batch: dict[str, Array]
) -> Float[Array, "B E"]:
    """The vector of each recording, which no text is heard with."""
    spec = config.frontend
    clips, _, num_real = cut_clips(spec, batch, crop=evaluation_crop(spec))
    mask = one_head.real_patches(config, num_real)
    states, _ = one_head.encode(config, variables, Audio(compute_features(clips[:, 0], spec), mask), None)
    return one_head.embed(config, variables, states, mask)


@functools.partial(jax.jit, static_argnums=0)
def embed_texts(
    config: OneHeadConfig, variables: dict[str, Any], ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
) -> Float[Array, "B E"]:
    """The vector of each text, by itself."""
    _, states = one_head.encode(config, variables, None, Text(ids, mask))
    return one_head.embed(config, variables, states, mask)


@functools.partial(jax.jit, static_argnums=0)
def measure_masked(config: CalmConfig, variables: dict[str, Any], batch: dict[str, Array]) -> dict[str, Loss]:
    """Losses of hidden words and patches, and the share of words named; with the other modality, and ``_alone``.

    The masks are those of the validation loss. Of what is hidden, both modalities have their part: a word is named from
    the visible words and patches, ``_alone`` from the visible words.
    """
    rows = prepare_rows(config, batch, None, train=False)
    params, ids, real = variables["params"], batch[contract.TEXT_IDS], batch[contract.MASK]
    found: dict[str, Loss] = {}
    for suffix, together in (("", True), ("_alone", False)):
        seen = jnp.full_like(real, together)
        outputs, _ = encode_rows(config, variables, rows._replace(together=seen))
        losses = masked_losses(params, outputs, ids, real)
        found |= {f"{name}/loss{suffix}": loss for name, loss in losses.items()}
        counted = rows.text_chosen & real[:, None]
        right = words_right(outputs.words, *one_head.word_table(params), ids, counted)
        found[f"masked_text/accuracy{suffix}"] = right
    return found


def draw(config: CalmConfig, variables: dict[str, Any], batch: Mapping[str, np.ndarray]) -> Reconstruction:
    """The reconstruction of a batch's recordings given their texts, with the masks of the validation loss."""
    return jax.tree.map(np.asarray, _draw(config, variables, jax.tree.map(jnp.asarray, dict(batch))))


@functools.partial(jax.jit, static_argnums=0)
def _draw(config: CalmConfig, variables: dict[str, Any], batch: dict[str, Array]) -> Reconstruction:
    rows = prepare_rows(config, batch, None, train=False)
    _, pixels = encode_rows(config, variables, rows)
    return to_maps(
        rows.features,
        rows.patch_hidden,
        pixels,
        patch_size=config.model.patch_size,
        is_normalized=config.normalize_target,
    )
