"""The loss over a vocabulary with the gradients in the forward pass, while the logits of a block of tokens are there.

The loss is the last thing a model computes, so its gradient is known but for a factor, the cotangent, by which the
backward pass multiplies what was kept: 6 n D V FLOPs, and logits of one block of tokens. Liger Kernel's fused linear
cross-entropy (Hsu et al. 2024, arXiv 2410.10989, section 3.3) works alike. Where nothing is differentiated no
gradient is computed.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from alm_jax.losses.language_modeling import chunked
from alm_jax.losses.language_modeling.blocks import Rows
from alm_jax.losses.language_modeling.plan import Plan
from alm_jax.losses.language_modeling.terms import (
    Statistics,
    equals_label,
    logit_gradients,
    project,
    take_in,
    token_losses,
)
from alm_jax.losses.sums import multiply, vary
from alm_jax.types import PyTree


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def token_loss_sum(
    plan: Plan,
    hidden: Float[Array, "n D"],
    kernel: Float[Array, "..."],
    bias: Float[Array, " V"] | None,
    labels: Int[Array, " n"],
    mask: Bool[Array, " n"] | None,
) -> Float[Array, ""]:
    """Sum of the losses of the tokens that count; see ``terms``. Differentiable in hidden, kernel and bias."""
    return chunked.forward(plan, hidden, kernel, bias, labels, mask)[0]


def forward(
    plan: Plan, hidden: Array, kernel: Array, bias: Array | None, labels: Array, mask: Array | None
) -> tuple[Array, PyTree]:
    """The sum, and its gradients."""
    inputs = (hidden, kernel, bias, labels, mask)
    hidden, kernel, bias, labels, mask = vary(inputs, inputs)
    rows = Rows.of(hidden.shape[0], mask, plan.rows, plan.platform)
    num_words = kernel.shape[0 if plan.tied else 1]
    words = kernel.astype(hidden.dtype)

    def visit(index: Array, sums: PyTree) -> PyTree:
        total, d_hidden, d_kernel, d_bias = sums
        block = rows.take(hidden, index)
        logits = project(plan, block, words, bias)
        is_label = equals_label(rows.take(labels, index), 0, num_words)
        seen = take_in(plan, Statistics.empty(rows.size), logits, is_label, None)
        weight = rows.in_use(index).astype(jnp.float32)
        total = total + jnp.sum(jnp.where(weight != 0, token_losses(plan, seen, num_words), 0))
        gradient = logit_gradients(plan, logits, is_label, None, seen.lse(), weight, num_words)
        if d_bias is not None:
            d_bias = d_bias + jnp.sum(gradient, axis=0)
        gradient = gradient.astype(block.dtype)
        d_block = multiply(gradient, words, (1, 0 if plan.tied else 1))
        d_words = multiply(gradient, block, (0, 0)) if plan.tied else multiply(block, gradient, (0, 0))
        return total, rows.put(d_hidden, index, d_block), d_kernel + d_words, d_bias

    sums = (
        jnp.float32(0),
        jnp.zeros_like(hidden),
        *jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (kernel, bias)),
    )
    total, d_hidden, d_kernel, d_bias = lax.fori_loop(0, rows.num_blocks, visit, vary(sums, inputs))
    # Arrays of no elements carry the dtypes to round to.
    kinds = jax.tree.map(lambda x: jnp.zeros(0, x.dtype), (hidden, kernel, bias))
    return total, ((d_hidden, d_kernel, d_bias), kinds)


def backward(plan: Plan, residuals: PyTree, cotangent: Array) -> tuple[Any, ...]:
    """Cotangents of the array arguments of ``token_loss_sum``."""
    gradients, kinds = residuals
    scaled = jax.tree.map(
        lambda x, kind: (cotangent * x.astype(jnp.float32)).astype(kind.dtype), gradients, kinds
    )
    return *scaled, None, None


token_loss_sum.defvjp(forward, backward)
