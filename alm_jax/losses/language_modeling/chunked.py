"""The loss over a vocabulary, tile by tile: no more logits than one tile, computed once forward and again backward.

Between the passes a log-sum-exp a token is kept, and nothing else. The gradient of the hidden states is added up in
float32 over a block of tokens; that of the kernel in the kernel's dtype, once a block of tokens: blocks are large,
so that a bfloat16 gradient is rounded a few times and not once a tile. Cut Cross-Entropy (Wijmans et al. 2024, arXiv
2411.09009) is the same idea as a kernel; nothing is left out here of gradients too small for bfloat16, of which
there may be many.

Where the words are spread over devices, each knows its own words and all tokens of its data-parallel group; the
log-sum-exps come together in one exchange forward, the gradients of the hidden states in one a block backward.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from alm_jax.losses.language_modeling.blocks import Rows, Words
from alm_jax.losses.language_modeling.plan import Plan
from alm_jax.losses.language_modeling.terms import (
    Statistics,
    equals_label,
    full_vocab_size,
    logit_gradients,
    over_vocabulary,
    own_labels,
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
    return forward(plan, hidden, kernel, bias, labels, mask)[0]


def forward(
    plan: Plan, hidden: Array, kernel: Array, bias: Array | None, labels: Array, mask: Array | None
) -> tuple[Array, PyTree]:
    """The sum, and what the backward pass needs."""
    inputs = (hidden, kernel, bias, labels, mask)
    # Not the mask: which tokens count, and so the sum, is the same on all devices that share the vocabulary.
    hidden, kernel, bias, labels = vary(inputs[:-1], inputs)
    rows = Rows.of(hidden.shape[0], mask, plan.rows, plan.platform)
    words = _words(plan, kernel)
    labels = own_labels(plan, labels, words.num_words)

    def visit_rows(index: Array, seen: Statistics) -> Statistics:
        block, block_labels = rows.take(hidden, index), rows.take(labels, index)

        def visit_words(word_index: Array, part: Statistics) -> Statistics:
            logits, is_label, is_new = _tile(plan, words, word_index, block, kernel, bias, block_labels)
            return take_in(plan, part, logits, is_label, is_new)

        empty = vary(Statistics.empty(rows.size), inputs)
        part = lax.fori_loop(0, words.num_blocks, visit_words, empty)
        return jax.tree.map(lambda x, y: lax.dynamic_update_index_in_dim(x, y, index, axis=0), seen, part)

    seen = vary(Statistics.empty(rows.capacity, rows.size), inputs)
    seen = over_vocabulary(lax.fori_loop(0, rows.num_blocks, visit_rows, seen), plan.vocab_axis_name)
    losses = token_losses(plan, seen, full_vocab_size(plan, words.num_words))
    # Blocks without a token have no statistics.
    used = jax.vmap(rows.in_use)(jnp.arange(rows.capacity))
    lse = jnp.where(used, seen.lse(), 0)
    return jnp.sum(jnp.where(used, losses, 0)), (*inputs, lse)


def backward(plan: Plan, residuals: PyTree, cotangent: Array) -> tuple[Any, ...]:
    """Cotangents of the array arguments of ``token_loss_sum``."""
    inputs = residuals[:-1]
    hidden, kernel, bias, labels, mask, lse = residuals
    rows = Rows.of(hidden.shape[0], mask, plan.rows, plan.platform)
    num_blocks = rows.num_blocks
    token_axes = () if mask is None else tuple(jax.typeof(mask).manual_axis_type.varying)
    if plan.vocab_axis_name is not None and token_axes:
        # Each block ends in an exchange, in which all devices take part.
        num_blocks = lax.pmax(num_blocks, token_axes)
    zeros = jax.tree.map(jnp.zeros_like, (hidden, kernel, bias))
    sums = (vary(zeros[0], hidden), *vary(zeros[1:], inputs))
    hidden, kernel, bias, labels = vary(inputs[:-1], inputs)
    words = _words(plan, kernel)
    vocab_size = full_vocab_size(plan, words.num_words)
    labels = own_labels(plan, labels, words.num_words)

    def visit_rows(index: Array, sums: PyTree) -> PyTree:
        d_hidden, d_kernel, d_bias = sums
        block, block_labels = rows.take(hidden, index), rows.take(labels, index)
        block_lse = lax.dynamic_index_in_dim(lse, index, keepdims=False)
        weight = cotangent * rows.in_use(index)

        def visit_words(word_index: Array, sums: PyTree) -> PyTree:
            d_block, d_kernel, d_bias = sums
            logits, is_label, is_new = _tile(plan, words, word_index, block, kernel, bias, block_labels)
            gradient = logit_gradients(plan, logits, is_label, is_new, block_lse, weight, vocab_size)
            if d_bias is not None:
                d_bias = words.add(d_bias, word_index, jnp.sum(gradient, axis=0))
            gradient = gradient.astype(block.dtype)
            some_words = words.take(kernel, word_index).astype(block.dtype)
            d_block = d_block + multiply(gradient, some_words, (1, 0 if plan.tied else 1))
            d_words = multiply(gradient, block, (0, 0)) if plan.tied else multiply(block, gradient, (0, 0))
            return d_block, words.add(d_kernel, word_index, d_words), d_bias

        d_block = vary(jnp.zeros(block.shape, jnp.float32), inputs)
        d_block, d_kernel, d_bias = lax.fori_loop(
            0, words.num_blocks, visit_words, (d_block, d_kernel, d_bias)
        )
        if plan.vocab_axis_name is not None:
            d_block = lax.psum(d_block, plan.vocab_axis_name)
        return rows.put(d_hidden, index, d_block), d_kernel, d_bias

    return *lax.fori_loop(0, num_blocks, visit_rows, sums), None, None


token_loss_sum.defvjp(forward, backward)


def _words(plan: Plan, kernel: Array) -> Words:
    axis = 0 if plan.tied else 1
    return Words.of(kernel.shape[axis], plan.cols, axis, plan.platform)


def _tile(
    plan: Plan,
    words: Words,
    index: Array,
    hidden: Array,
    kernel: Array,
    bias: Array | None,
    labels: Array,
) -> tuple[Array, Array, Array | None]:
    """Logits of a block of tokens for a block of words; whether a word is the label; whether it is new."""
    some_bias = None if bias is None else words.take(bias, index)
    logits = project(plan, hidden, words.take(kernel, index), some_bias)
    is_label = equals_label(labels, words.start(index), words.size)
    is_new = words.is_new(index)
    if is_new is not None:
        is_label = is_label & is_new
    return logits, is_label, is_new
