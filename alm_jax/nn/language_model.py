"""Shared parts of language models: inserting vectors beside tokens, and the output head."""

from typing import Any, Literal, TypeAlias

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from alm_jax.errors import UserError
from alm_jax.nn.layout import constrain
from alm_jax.nn.parameter import declare, truncated_normal

Output: TypeAlias = Literal["logits", "states", "last", "next"]
"""What a language model returns:

======  ========================================================================================================
logits  of every token's successor, [B L V], float32 or wider
states  after the last norm, [B L D]: what `alm_jax.losses.language_modeling` takes, together with `head_kernel`
last    the state of each row's last real token, [B D]: a text's vector
next    logits of what follows each row's last real token, [B V]: all that generation needs
======  ========================================================================================================
"""


class Head(nn.Module):
    """States to logits without a bias; parameter ``kernel`` [D V]."""

    vocab_size: int

    @nn.compact
    def __call__(self, states: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        shape = (states.shape[-1], self.vocab_size)
        return project(
            states, declare(self, "kernel", truncated_normal, shape, ("embed", "vocab")), tied=False
        )


def project(
    states: Float[Array, "*B D"], kernel: Float[Array, "rows cols"], *, tied: bool
) -> Float[Array, "*B V"]:
    """Computes logits: states W, or states E^T with a ``tied`` table of embeddings; products in the states' dtype,
    float32 sums."""
    contracted = ((states.ndim - 1,), (1 if tied else 0,))
    logits = lax.dot_general(
        states,
        kernel.astype(states.dtype),
        (contracted, ((), ())),
        preferred_element_type=jnp.promote_types(states.dtype, jnp.float32),
    )
    return constrain(logits, "batch", *[None] * (logits.ndim - 2), "vocab")


def head_kernel(config: Any, params: Any) -> tuple[Array, bool]:
    """Returns the array that turns states into logits, and whether it is the table of embeddings.

    For any config with ``tied_head`` and its model's ``params``; `token_loss` of
    `alm_jax.losses.language_modeling` takes both, and so does `project`.
    """
    if config.tied_head:
        return params["token_embed"]["embedding"], True
    return params["head"]["kernel"], False


def insert(
    x: Float[Array, "B L D"], embeds: Float[Array, "B L D"] | None, embeds_mask: Bool[Array, "B L"] | None
) -> Float[Array, "B L D"]:
    """Returns ``embeds`` where ``embeds_mask`` is True (everywhere without one), embeddings of tokens elsewhere.

    Raises:
        UserError: there is a mask and no ``embeds``.
    """
    if embeds is None:
        if embeds_mask is not None:
            raise UserError("embeds_mask says where embeds go, but embeds is None: give both or neither")
        return x
    if embeds_mask is None:
        return embeds.astype(x.dtype)
    return jnp.where(embeds_mask[:, :, None], embeds.astype(x.dtype), x)


def find_last(mask: Bool[Array, "B L"]) -> Int[Array, " B"]:
    """Index of each row's last real token; the last index where there is none."""
    return mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)


def take_rows(x: Float[Array, "B L D"], index: Int[Array, " B"]) -> Float[Array, "B D"]:
    """Selects one state of each row."""
    return jnp.take_along_axis(x, index[:, None, None], axis=1, mode="clip")[:, 0]
