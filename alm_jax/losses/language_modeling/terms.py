"""The loss of one token as a function of its logits, and its gradient: shared by all forms.

With z the logits over V words, y the label, e the label smoothing and c the weight of the z-loss:

    loss = lse(z) - (1 - e) z[y] - e mean(z) + c lse(z)^2
    dloss/dz[v] = softmax(z)[v] (1 + 2 c lse(z)) - (1 - e) [v = y] - e / V

The targets are (1 - e) one-hot + e / V, as in Szegedy et al. 2016 (arXiv 1512.00567, section 7) and
``torch.nn.functional.cross_entropy``; the z-loss is that of PaLM (Chowdhery et al. 2022, arXiv 2204.02311, section 5).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from alm_jax.losses.language_modeling.plan import Plan
from alm_jax.losses.sums import MASKED_LOGIT, AxisName, multiply


class Statistics(NamedTuple):
    """What the loss needs of the logits seen so far, for a number of tokens; float32."""

    peak: Float[Array, "*n"]
    """The largest logit."""
    total: Float[Array, "*n"]
    """Sum of exp(logit - peak)."""
    label: Float[Array, "*n"]
    """The logit of the label; 0 before it is seen."""
    plain: Float[Array, "*n"]
    """Sum of the logits; stays 0 without label smoothing."""

    @classmethod
    def empty(cls, *shape: int) -> "Statistics":
        """Makes statistics of tokens that have seen no logit."""
        zeros = jnp.zeros(shape, jnp.float32)
        return cls(jnp.full(shape, MASKED_LOGIT, jnp.float32), zeros, zeros, zeros)

    def lse(self) -> Float[Array, "*n"]:
        """Returns the log-sum-exps."""
        return self.peak + jnp.log(jnp.maximum(self.total, jnp.finfo(jnp.float32).tiny))


def project(
    plan: Plan, hidden: Float[Array, "r D"], kernel: Float[Array, "..."], bias: Float[Array, " c"] | None
) -> Float[Array, "r c"]:
    """Logits, float32, of some tokens for some words: the kernel is [D c], or [c D] where tied."""
    logits = multiply(hidden, kernel.astype(hidden.dtype), (1, 1 if plan.tied else 0))
    return logits if bias is None else logits + bias.astype(jnp.float32)[None, :]


def take_in(
    plan: Plan,
    statistics: Statistics,
    logits: Float[Array, "r c"],
    is_label: Bool[Array, "r c"],
    is_new: Bool[Array, "1 c"] | None,
) -> Statistics:
    """Updates ``statistics`` of r tokens with their logits for c more words; words that are not new are ignored."""
    seen = logits if is_new is None else jnp.where(is_new, logits, MASKED_LOGIT)
    # The log-sum-exp does not depend on the peak, and so has no gradient through it.
    peak = jnp.maximum(statistics.peak, jnp.max(lax.stop_gradient(seen), axis=1))
    total = statistics.total * jnp.exp(statistics.peak - peak) + jnp.sum(
        jnp.exp(seen - peak[:, None]), axis=1
    )
    label = statistics.label + jnp.sum(jnp.where(is_label, logits, 0), axis=1)
    plain = statistics.plain
    if plan.label_smoothing:
        plain = plain + jnp.sum(logits if is_new is None else jnp.where(is_new, logits, 0), axis=1)
    return Statistics(peak, total, label, plain)


def over_vocabulary(statistics: Statistics, axis_name: AxisName | None) -> Statistics:
    """Merges statistics over the words of all devices of ``axis_name``."""
    if axis_name is None:
        return statistics
    peak = lax.pmax(lax.stop_gradient(statistics.peak), axis_name)
    total, label, plain = lax.psum(
        (statistics.total * jnp.exp(statistics.peak - peak), statistics.label, statistics.plain), axis_name
    )
    return Statistics(peak, total, label, plain)


def token_losses(plan: Plan, statistics: Statistics, vocab_size: int) -> Float[Array, "*n"]:
    """Computes the loss of each token from the statistics of all its ``vocab_size`` logits."""
    lse, smoothing = statistics.lse(), plan.label_smoothing
    losses = lse - (1 - smoothing) * statistics.label
    if smoothing:
        losses = losses - smoothing / vocab_size * statistics.plain
    return losses + plan.z_loss * jnp.square(lse) if plan.z_loss else losses


def logit_gradients(
    plan: Plan,
    logits: Float[Array, "r c"],
    is_label: Bool[Array, "r c"],
    is_new: Bool[Array, "1 c"] | None,
    lse: Float[Array, " r"],
    weight: Float[Array, " r"],
    vocab_size: int,
) -> Float[Array, "r c"]:
    """Computes ``weight`` times the gradient of each token's loss with respect to its logits, float32."""
    probability = jnp.exp(logits - lse[:, None])
    slope = weight * (1 + 2 * plan.z_loss * lse) if plan.z_loss else weight
    target = jnp.where(is_label, 1 - plan.label_smoothing, 0.0)
    if plan.label_smoothing:
        target = target + plan.label_smoothing / vocab_size
    gradient = slope[:, None] * probability - weight[:, None] * target
    # A factor of 0 is not enough where a logit that does not count is not finite.
    keep = (weight != 0)[:, None] if is_new is None else (weight != 0)[:, None] & is_new
    return jnp.where(keep, gradient, 0)


def own_labels(plan: Plan, labels: Int[Array, "*n"], num_words: int) -> Int[Array, "*n"]:
    """Returns labels relative to this device's first word; those of other devices are outside [0, num_words)."""
    if plan.vocab_axis_name is None:
        return labels
    return labels - lax.axis_index(plan.vocab_axis_name) * num_words


def full_vocab_size(plan: Plan, num_words: int) -> int:
    """Returns the number of words on all devices, of which this one has ``num_words``."""
    return num_words * (1 if plan.vocab_axis_name is None else lax.axis_size(plan.vocab_axis_name))


def equals_label(labels: Int[Array, " r"], first_word: int | Array, num_words: int) -> Bool[Array, "r c"]:
    """Whether the words ``first_word``, ``first_word + 1``, ... are a token's label."""
    # A comparison in place of a look-up: it fuses into the reductions, and its gradient is no scatter.
    word = lax.broadcasted_iota(jnp.int32, (labels.shape[0], num_words), 1)
    return word == (labels.astype(jnp.int32) - first_word)[:, None]
