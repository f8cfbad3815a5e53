"""Symmetric InfoNCE across devices: each gathers the texts of all, and computes its own audio rows once."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from alm_jax.losses.contrastive.reference import MASKED_LOGIT


def symmetric_infonce(
    audio_emb: Float[Array, "b E"],
    text_emb: Float[Array, "b E"],
    logit_scale: Float[Array, ""],
    *,
    mask: Bool[Array, " b"] | None = None,
    axis_name: str | tuple[str, ...],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """``reference.symmetric_infonce`` of the global batch, of which every device holds b pairs.

    For use inside ``shard_map`` or ``pmap`` over the mesh axes ``axis_name``; ``mask`` may be False for all
    pairs of a device. Every logit of the [B B] matrix is computed once, by the device that owns its audio
    row: memory is [b B], traffic one all-gather of the texts and two reductions of B numbers. The softmax
    over audios is put together from the column sums of all devices.

    Returns the LOCAL sum and weight, those of the device's own pairs: the global ones are their sums over the
    devices. Under ``shard_map``, differentiate ``psum(sum)``; under ``pmap``, differentiate the local sum and
    ``psum`` the gradients of the parameters. Both are exact: the collectives carry the cross-device terms.
    """
    num_local = audio_emb.shape[0]
    mask = jnp.ones(num_local, bool) if mask is None else mask
    audio = jnp.where(mask[:, None], audio_emb, 0).astype(jnp.float32)
    text = jnp.where(mask[:, None], text_emb, 0).astype(jnp.float32)
    all_text = lax.all_gather(text, axis_name, tiled=True)  # [B E]
    all_mask = lax.all_gather(mask, axis_name, tiled=True)  # [B]
    scale = logit_scale.astype(jnp.float32)
    logits = scale * jnp.einsum("ie,je->ij", audio, all_text, precision=lax.Precision.HIGHEST)  # [b B]
    logits = jnp.where(mask[:, None] & all_mask[None, :], logits, MASKED_LOGIT)
    first = lax.axis_index(axis_name) * num_local
    positive = jnp.diagonal(lax.dynamic_slice_in_dim(logits, first, num_local, axis=1))

    # Log-sum-exp over the audios of all devices. The peak only shifts it, so it carries no gradient.
    peak = lax.pmax(lax.stop_gradient(jnp.max(logits, axis=0)), axis_name)  # [B]
    column_sum = jnp.sum(jnp.exp(logits - peak[None, :]), axis=0)  # [B]
    own_sum = lax.psum_scatter(column_sum, axis_name, tiled=True)  # [b]
    own_peak = lax.dynamic_slice_in_dim(peak, first, num_local)

    audio_loss = jax.nn.logsumexp(logits, axis=1) - positive
    text_loss = own_peak + jnp.log(own_sum) - positive
    total = jnp.sum(jnp.where(mask, (audio_loss + text_loss) / 2, 0))
    return total, jnp.sum(mask, dtype=jnp.float32)
