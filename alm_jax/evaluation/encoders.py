"""Recordings and captions to embeddings, deterministically: the jitted functions behind every evaluation."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.models import two_towers
from alm_jax.objectives.contrastive import compute_inputs


@functools.partial(jax.jit, static_argnums=0)
def embed_recordings(
    config: two_towers.TwoTowersConfig, variables: dict[str, Any], batch: dict[str, Array]
) -> Float[Array, "B E"]:
    """Embeds recordings, cut by the front-end's ``eval_crop``; no randomness anywhere.

    With "chunks", a recording's embedding is the normalised mean of those of its chunks. ``batch`` needs the
    keys ``audio`` and ``audio_num_samples`` of the batch contract.
    """
    inputs, chunk_mask = compute_inputs(config, batch, crop=config.frontend.clip.eval_crop)
    rows, chunks = chunk_mask.shape
    inputs = jax.tree.map(lambda x: x.reshape(rows * chunks, *x.shape[2:]), inputs)
    emb, _ = two_towers.encode_audio(
        config, variables, inputs.features, frame_mask=inputs.frame_mask, longer=inputs.longer
    )
    emb = jnp.sum(emb.reshape(rows, chunks, -1) * chunk_mask[:, :, None], axis=1)
    return emb / jnp.maximum(jnp.linalg.norm(emb, axis=-1, keepdims=True), 1e-12)


@functools.partial(jax.jit, static_argnums=0)
def embed_captions(
    config: two_towers.TwoTowersConfig,
    variables: dict[str, Any],
    text_ids: Int[Array, "B L"],
    text_mask: Bool[Array, "B L"],
) -> Float[Array, "B E"]:
    """Embeds tokenised captions."""
    return two_towers.encode_text(config, variables, text_ids, text_mask)
