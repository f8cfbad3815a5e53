"""Classification: cross-entropy, multi-label cross-entropy, class balance, and the soft targets of mixup.

The survey's L_cls = -(1/B) sum_i sum_c y_ic log p_ic (arXiv 2501.15177, "Discriminative Objectives"), with the
softmax taken here. Every loss is computed in float32 and returns (sum, weight), both float32: the mean is
their quotient. Rows with a False ``mask`` are ignored, whatever they hold.
"""

import math

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


def class_balanced_weights(class_counts: Int[Array, " C"], beta: float = 0.9999) -> Float[Array, " C"]:
    """Weights of classes by their effective number of examples: (1 - beta) / (1 - beta^n), scaled to sum to C.

    Cui et al. 2019 (arXiv 1901.05555), equation 2 and section 4. ``class_counts`` are the training set's.
    beta = 0 weighs all equally; beta near 1 weighs by the inverse of the count. A class without examples has weight
    0, and the others then sum to their number.

    Raises:
      ValueError: unless 0 <= beta < 1.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta is {beta}; expected a number from 0 to below 1, such as 0.9999")
    counts = class_counts.astype(jnp.float32)
    seen = counts > 0
    # 1 - beta^n directly would lose its digits where beta^n is near 1.
    log_beta = math.log(beta) if beta > 0 else -math.inf
    effective = -jnp.expm1(jnp.where(seen, counts, 1) * log_beta)
    inverse = jnp.where(seen, 1 / effective, 0)
    return inverse * jnp.sum(seen) / jnp.maximum(jnp.sum(inverse), jnp.finfo(jnp.float32).tiny)


def mix_targets(
    targets: Float[Array, "B C"], partner: Int[Array, " B"], weight: Float[Array, " B"]
) -> Float[Array, "B C"]:
    """Targets of a mixup: weight[i] targets[i] + (1 - weight[i]) targets[partner[i]].

    ``partner`` and ``weight`` are those of `alm_jax.ops.augment.mix_waveforms` (Zhang et al. 2018, arXiv
    1710.09412). HTS-AT's published code mixes the audio and leaves the targets; PANNs and AST mix both.
    """
    own = weight[:, None].astype(targets.dtype)
    return own * targets + (1 - own) * targets[partner]
