"""The sigmoid loss over all pairs, tiled: as many independent yes-or-no questions as the matrix has pairs.

Zhai et al. 2023 (SigLIP, https://arxiv.org/abs/2303.15343), eq. 1. Neither pass stores a logit.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alm_jax.losses.contrastive import kernel
from alm_jax.losses.contrastive.plan import Plan
from alm_jax.losses.contrastive.tiles import PADDING, multiply, visit_tiles
from alm_jax.types import PyTree


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def sigmoid_sum(
    plan: Plan,
    audio_emb: Float[Array, "b E"],
    text_emb: Float[Array, "b E"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    ids: Int[Array, " b"],
) -> Float[Array, ""]:
    """Sum over this device's real rows i and the real columns j of all devices of -log sigmoid(y (l[i, j] + bias)).

    y is 1 for pairs with equal ids and -1 for the others; id -1 is padding, whose embeddings must be zero.
    Differentiable in the embeddings, ``scale`` and ``bias``; the cotangent must be the same on all devices.
    """
    return forward(plan, audio_emb, text_emb, scale, bias, ids)[0]


def forward(
    plan: Plan, audio_emb: Array, text_emb: Array, scale: Array, bias: Array, ids: Array
) -> tuple[Array, PyTree]:
    """The sum, and what the backward pass needs."""
    if plan.kernel:
        kernel.announce_no_kernel("the sigmoid loss")

    def visit(row: PyTree, col: PyTree, losses: Array, nothing: tuple[()]) -> tuple[Array, tuple[()]]:
        (audio, audio_id), (text, text_id) = row, col
        logits = scale * multiply(audio, text, (1, 1)) + bias
        positive = audio_id[:, None] == text_id[None, :]
        loss = jax.nn.softplus(jnp.where(positive, -logits, logits))
        return losses + jnp.sum(jnp.where(text_id[None, :] != PADDING, loss, 0.0), axis=1), nothing

    losses, _ = plan.sweep(
        functools.partial(visit_tiles, visit, tile=plan.tile),
        (audio_emb, ids),
        (text_emb, ids),
        empty=(jnp.zeros, lambda size: ()),
        finish=(lambda row, losses: jnp.where(row[1] != PADDING, losses, 0.0), lambda col, nothing: nothing),
    )
    return jnp.sum(losses), (audio_emb, text_emb, scale, bias, ids)


def backward(plan: Plan, residuals: PyTree, cotangent: Array) -> tuple[Any, ...]:
    """Cotangents of the array arguments of ``sigmoid_sum``."""
    audio_emb, text_emb, scale, bias, ids = residuals

    def visit(row: PyTree, col: PyTree, row_sums: PyTree, d_col: Array) -> tuple[PyTree, Array]:
        (audio, audio_id), (text, text_id), (d_row, d_bias) = row, col, row_sums
        logits = scale * multiply(audio, text, (1, 1)) + bias
        positive = audio_id[:, None] == text_id[None, :]
        # sigmoid(l) - 1 = -sigmoid(-l), which keeps its precision where the pair is well matched.
        grad = jnp.where(positive, -jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits))
        d_bias = d_bias + jnp.sum(jnp.where(text_id[None, :] != PADDING, grad, 0.0), axis=1)
        grad = grad.astype(audio.dtype)
        return (d_row + multiply(grad, text, (1, 0)), d_bias), d_col + multiply(grad, audio, (0, 0))

    def zeros(size: int) -> Array:
        return jnp.zeros((size, audio_emb.shape[1]), jnp.float32)

    def finish_text(side: PyTree, d_emb: Array) -> Array:
        return jnp.where((side[1] != PADDING)[:, None], cotangent * scale * d_emb, 0.0).astype(side[0].dtype)

    def finish_audio(side: PyTree, sums: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        d_emb, d_bias = sums
        d_scale = cotangent * jnp.sum(side[0].astype(jnp.float32) * d_emb)
        d_bias = cotangent * jnp.sum(jnp.where(side[1] != PADDING, d_bias, 0.0))
        return finish_text(side, d_emb), d_scale, d_bias

    (d_audio, d_scale, d_bias), d_text = plan.sweep(
        functools.partial(visit_tiles, visit, tile=plan.tile),
        (audio_emb, ids),
        (text_emb, ids),
        empty=(lambda size: (zeros(size), jnp.zeros(size)), zeros),
        finish=(finish_audio, finish_text),
    )
    return d_audio, d_text, d_scale, d_bias, None


sigmoid_sum.defvjp(forward, backward)
