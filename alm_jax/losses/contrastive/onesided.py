"""The contrastive losses across devices, plainly: each gathers the texts of all, and computes its own audio rows.

For use inside ``shard_map`` or ``pmap`` over the mesh axes ``axis_name``. Every logit of the [B B] matrix is
computed once, by the device that owns its audio row: memory is [b B], traffic one all-gather of the texts and, for
the softmaxes over audios, reductions of B numbers. Ids are as in ``reference``; sums are of a device's own rows.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from alm_jax.losses.contrastive.reference import products
from alm_jax.losses.sums import MASKED_LOGIT, AxisName


def softmax_sum(
    audio_emb: Float[Array, "b E"],
    text_emb: Float[Array, "b E"],
    scale: Float[Array, ""],
    ids: Int[Array, " b"],
    extra_lse: Float[Array, " b"] | None = None,
    *,
    axis_name: AxisName,
) -> Float[Array, ""]:
    """Computes this device's rows of ``reference.softmax_sum`` of the global batch."""
    num_local = ids.shape[0]
    all_text = lax.all_gather(text_emb.astype(jnp.float32), axis_name, tiled=True)  # [B E]
    all_ids = lax.all_gather(ids, axis_name, tiled=True)  # [B]
    real = ids != -1
    logits = scale * products(audio_emb, all_text)  # [b B]
    logits = jnp.where(real[:, None] & (all_ids != -1)[None, :], logits, MASKED_LOGIT)
    positive = (ids[:, None] == all_ids[None, :]) & real[:, None]
    count = jnp.maximum(jnp.sum(positive, axis=1), 1)
    positive_logit = jnp.sum(jnp.where(positive, logits, 0.0), axis=1) / count
    audio_lse = jax.nn.logsumexp(logits, axis=1)
    if extra_lse is not None:
        audio_lse = jnp.logaddexp(audio_lse, extra_lse)

    # Log-sum-exp over the audios of all devices. The peak only shifts it, so it carries no gradient.
    peak = lax.pmax(lax.stop_gradient(jnp.max(logits, axis=0)), axis_name)  # [B]
    column_sum = jnp.sum(jnp.exp(logits - peak[None, :]), axis=0)  # [B]
    own_sum = lax.psum_scatter(column_sum, axis_name, tiled=True)  # [b]
    own_peak = lax.dynamic_slice_in_dim(peak, lax.axis_index(axis_name) * num_local, num_local)
    text_lse = own_peak + jnp.log(own_sum)
    return jnp.sum(jnp.where(real, (audio_lse + text_lse) / 2 - positive_logit, 0.0))


def sigmoid_sum(
    audio_emb: Float[Array, "b E"],
    text_emb: Float[Array, "b E"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    ids: Int[Array, " b"],
    *,
    axis_name: AxisName,
) -> Float[Array, ""]:
    """Computes this device's rows of ``reference.sigmoid_sum`` of the global batch."""
    all_text = lax.all_gather(text_emb.astype(jnp.float32), axis_name, tiled=True)
    all_ids = lax.all_gather(ids, axis_name, tiled=True)
    logits = scale * products(audio_emb, all_text) + bias
    positive = ids[:, None] == all_ids[None, :]
    losses = jax.nn.softplus(jnp.where(positive, -logits, logits))
    return jnp.sum(jnp.where((ids != -1)[:, None] & (all_ids != -1)[None, :], losses, 0.0))
