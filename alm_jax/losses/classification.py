"""Classification: cross-entropy, multi-label cross-entropy, class balance, and the soft targets of mixup.

The survey's L_cls = -(1/B) sum_i sum_c y_ic log p_ic (arXiv 2501.15177, "Discriminative Objectives"), with the
softmax taken here. Every loss is computed in float32 and returns (sum, weight), both float32: the mean is
their quotient. Rows with a False ``mask`` are ignored, whatever they hold.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def cross_entropy(
    logits: Float[Array, "*B C"],
    labels: Int[Array, "*B"],
    *,
    mask: Bool[Array, "*B"] | None = None,
    class_weights: Float[Array, " C"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """-log softmax(logits)[label], summed over the real rows; the weight is their number.

    With ``class_weights`` a row is weighted by its label's weight, in the sum and in the weight, as in
    `torch.nn.CrossEntropyLoss(weight=...)`. Labels of real rows lie in [0, C).
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
    return jnp.sum(row_weight * loss), jnp.sum(row_weight)


def soft_cross_entropy(
    logits: Float[Array, "*B C"],
    targets: Float[Array, "*B C"],
    *,
    mask: Bool[Array, "*B"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """-sum_c y_c log softmax(logits)_c, summed over the real rows; the weight is their number.

    ``targets`` are probabilities: one-hot labels mixed by `mix_targets`, or a teacher's.
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
