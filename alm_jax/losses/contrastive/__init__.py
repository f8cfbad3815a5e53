"""Contrastive losses: one signature, a plain form and forms for many devices."""

from jaxtyping import Array, Bool, Float

from alm_jax.losses.contrastive import onesided, reference

__all__ = ["symmetric_infonce"]


def symmetric_infonce(
    audio_emb: Float[Array, "b E"],
    text_emb: Float[Array, "b E"],
    logit_scale: Float[Array, ""],
    *,
    mask: Bool[Array, " b"] | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Symmetric InfoNCE as (sum, weight): of the global batch, or of a device's rows of it.

    Without ``axis_name`` the arrays are the global batch (``reference``). With it they are the rows of one
    device inside ``shard_map`` or ``pmap``, and so are the sum and the weight returned (``onesided``).
    """
    if axis_name is None:
        return reference.symmetric_infonce(audio_emb, text_emb, logit_scale, mask=mask)
    return onesided.symmetric_infonce(audio_emb, text_emb, logit_scale, mask=mask, axis_name=axis_name)
