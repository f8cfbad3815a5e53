"""Classification: cross-entropy with labels, with soft targets, and with several labels a row.

The survey's L_cls = -(1/B) sum_i sum_c y_ic log p_ic (arXiv 2501.15177, "Discriminative Objectives"), with the
softmax taken here. Every loss is computed in float32 and returns (sum, weight), both float32: the mean is
their quotient. Rows with a False ``mask`` are ignored, whatever they hold.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.losses.sums import add_up


def cross_entropy(
    logits: Float[Array, "*B C"],
    labels: Int[Array, "*B"],
    *,
    mask: Bool[Array, "*B"] | None = None,
    class_weights: Float[Array, " C"] | None = None,
    by_row: bool = False,
) -> tuple[Float[Array, "*rows"], Float[Array, "*rows"]]:
    """-log softmax(logits)[label], summed over the real rows; the weight is their number.

    With ``class_weights`` a row is weighted by its label's weight, in the sum and in the weight, as in
    `torch.nn.CrossEntropyLoss(weight=...)`. Labels of real rows lie in [0, C). With ``by_row`` both are of each index
    of the first axis.
    """
    mask = jnp.ones(labels.shape, bool) if mask is None else mask
    logits = jnp.where(mask[..., None], logits, 0).astype(jnp.float32)
    # A comparison in place of a look-up: its gradient is no scatter.
    is_label = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == labels[..., None]
    chosen = jnp.sum(jnp.where(is_label, logits, 0), axis=-1)
    row_weight = mask.astype(jnp.float32)
    if class_weights is not None:
        row_weight = row_weight * jnp.take(class_weights.astype(jnp.float32), labels, mode="clip")
    loss = jax.nn.logsumexp(logits, axis=-1) - chosen
    return add_up(row_weight * loss, by_row=by_row), add_up(row_weight, by_row=by_row)


def soft_cross_entropy(
    logits: Float[Array, "*B C"],
    targets: Float[Array, "*B C"],
    *,
    mask: Bool[Array, "*B"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """-sum_c y_c log softmax(logits)_c, summed over the real rows; the weight is their number.

    ``targets`` are probabilities: mixed one-hot labels, or a teacher's.
    """
    mask = jnp.ones(logits.shape[:-1], bool) if mask is None else mask
    logits = jnp.where(mask[..., None], logits, 0).astype(jnp.float32)
    targets = jnp.where(mask[..., None], targets, 0).astype(jnp.float32)
    return -jnp.sum(targets * jax.nn.log_softmax(logits, axis=-1)), jnp.sum(mask, dtype=jnp.float32)


def binary_cross_entropy(
    logits: Float[Array, "*B C"],
    targets: Float[Array, "*B C"],
    *,
    mask: Bool[Array, "*B"] | None = None,
    class_weights: Float[Array, " C"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """-(y log s(x) + (1 - y) log (1 - s(x))) for each class, s the sigmoid: audio tagging with several labels.

    The mean over the classes of a row (each times its class weight, where given), summed over the real rows;
    the weight is their number. Equal to `torch.nn.BCEWithLogitsLoss(weight=...)`. ``targets`` lie in [0, 1].
    """
    mask = jnp.ones(logits.shape[:-1], bool) if mask is None else mask
    logits = jnp.where(mask[..., None], logits, 0).astype(jnp.float32)
    targets = jnp.where(mask[..., None], targets, 0).astype(jnp.float32)
    loss = targets * jax.nn.softplus(-logits) + (1 - targets) * jax.nn.softplus(logits)
    if class_weights is not None:
        weights = class_weights.astype(jnp.float32)
        loss = loss * jnp.expand_dims(weights, tuple(range(loss.ndim - 1)))
    loss = jnp.where(mask, jnp.mean(loss, axis=-1), 0)
    return jnp.sum(loss), jnp.sum(mask, dtype=jnp.float32)
