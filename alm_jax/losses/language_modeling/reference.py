"""The loss over a vocabulary in its plain form: all logits at once, in float32, differentiated by JAX."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.losses.language_modeling.plan import Plan
from alm_jax.losses.language_modeling.terms import (
    Statistics,
    equals_label,
    full_vocab_size,
    over_vocabulary,
    own_labels,
    project,
    take_in,
    token_losses,
)


def token_loss_sum(
    plan: Plan,
    hidden: Float[Array, "n D"],
    kernel: Float[Array, "..."],
    bias: Float[Array, " V"] | None,
    labels: Int[Array, " n"],
    mask: Bool[Array, " n"] | None,
) -> Float[Array, ""]:
    """Sum of the losses of the tokens that count; see ``terms``."""
    if mask is not None:
        hidden = jnp.where(mask[:, None], hidden, 0)
    num_words = kernel.shape[0 if plan.tied else 1]
    logits = project(plan, hidden, kernel, bias)
    is_label = equals_label(own_labels(plan, labels, num_words), 0, num_words)
    statistics = take_in(plan, Statistics.empty(hidden.shape[0]), logits, is_label, None)
    statistics = over_vocabulary(statistics, plan.vocab_axis_name)
    losses = token_losses(plan, statistics, full_vocab_size(plan, num_words))
    return jnp.sum(losses if mask is None else jnp.where(mask, losses, 0))
