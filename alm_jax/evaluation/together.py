"""Evaluation of a contrastive captioner: embeddings for retrieval, and captions that it writes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from alm_jax import batch as contract
from alm_jax.encoders import tower
from alm_jax.evaluation.embed import Batch
from alm_jax.models import contrastive_captioner
from alm_jax.models.caption_decoder import FAMILY
from alm_jax.models.contrastive_captioner import ContrastiveCaptionerConfig
from alm_jax.models.generated import Generated
from alm_jax.models.generation import generate
from alm_jax.objectives.recordings import cut_clips
from alm_jax.ops.frontends import compute_features


@functools.partial(jax.jit, static_argnums=0)
def embed_recordings(
    config: ContrastiveCaptionerConfig, variables: dict[str, Any], batch: dict[str, Array]
) -> tuple[Float[Array, "B E"], Float[Array, "B n D"]]:
    """Of the middle of each recording: its embedding, and the vectors that captions are written by."""
    clips, _, num_real = cut_clips(config.frontend, batch, crop="centre")
    features = compute_features(clips[:, 0], config.frontend)
    frame_mask = tower.frame_mask(config.frontend, config.padding, num_real)
    heard, _ = contrastive_captioner.hear(config, variables, features, frame_mask)
    params = variables["params"]
    return (
        contrastive_captioner.embed_audio(config, params, heard),
        contrastive_captioner.pool_for_captions(config, params, heard),
    )


@functools.partial(jax.jit, static_argnums=0)
def embed_captions(
    config: ContrastiveCaptionerConfig,
    variables: dict[str, Any],
    ids: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
) -> Float[Array, "B E"]:
    """Embeddings of tokenised captions."""
    params = variables["params"]
    states = contrastive_captioner.read_texts(config, params, ids, mask)
    return contrastive_captioner.embed_texts(config, params, states)


@functools.partial(jax.jit, static_argnums=0, static_argnames="num_new_tokens")
def write_captions(
    config: ContrastiveCaptionerConfig,
    variables: dict[str, Any],
    vectors: Float[Array, "B n D"],
    *,
    start_id: int | Int[Array, ""],
    end_id: int | Int[Array, ""],
    num_new_tokens: int,
) -> Generated:
    """The likeliest caption, token by token, of `embed_recordings`' vectors."""
    ids = jnp.full((vectors.shape[0], 1), start_id, jnp.int32)
    return generate(
        FAMILY,
        config.text,
        {"params": variables["params"]["text"]},
        ids,
        jnp.ones(ids.shape, bool),
        num_new_tokens=num_new_tokens,
        end_id=end_id,
        dtype=jnp.dtype(config.compute_dtype),
        method="decode",
        source=vectors,
    )


def recordings_of(batch: Batch) -> dict[str, np.ndarray]:
    """What `embed_recordings` reads of a batch."""
    return {key: np.array(batch[key]) for key in (contract.AUDIO, contract.AUDIO_NUM_SAMPLES)}
