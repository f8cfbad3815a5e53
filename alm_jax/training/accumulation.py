"""Loss and gradients of one global batch, in one piece or in exact micro-batches.

For losses that couple the rows of a batch, averaging the gradients of micro-batches is wrong, since each micro-batch
has fewer negatives. Here the outputs of every micro-batch are computed first, without keeping activations; the loss
over all of them gives each output's gradient; then each micro-batch is encoded again and its output gradient pulled
back (GradCache, arXiv 2101.06983). The result equals the full batch's to rounding, and costs a second forward pass;
memory is that of one micro-batch plus the outputs [B E].
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alm_jax.objectives import Objective
from alm_jax.objectives.objective import LOSS_STREAM, Inputs, Loss
from alm_jax.training.trainable import overlay
from alm_jax.types import Metrics, Params, PyTree

STATS_STREAM = 2
"""Constant folded into a step's key for `Objective.update_stats`."""


def loss_and_gradients(
    objective: Objective,
    variables: dict[str, Any],
    batch: dict[str, Array],
    key: Any,
    *,
    num_microbatches: int = 1,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Params, Params, Metrics]:
    """Computes the mean loss over the real rows, its gradients, new batch_stats, and metrics (already divided).

    Gradients are those of ``objective.trained`` parameters, and no others are computed.
    ``num_microbatches`` must divide the rows of the batch. Under ``pmap``, ``axis_name`` names the mapped
    axis, ``batch`` is this device's rows, and the results are summed over devices.
    """
    key_prepare, key_encode = jax.random.split(key)
    key_stats, key_loss = (jax.random.fold_in(key, stream) for stream in (STATS_STREAM, LOSS_STREAM))
    if axis_name is not None:
        # Each device has its own noise for its own rows.
        index = jax.lax.axis_index(axis_name)
        key_prepare, key_encode = (
            jax.random.fold_in(key_prepare, index),
            jax.random.fold_in(key_encode, index),
        )
    # Objectives with independent rows need no knowledge of other devices.
    across = {"axis_name": axis_name} if axis_name is not None and objective.pmap == "batch" else {}
    inputs = objective.prepare(batch, key_prepare, train=True, **across)

    everything = variables["params"]

    def encode(params: Params, inputs: Inputs, key: Any) -> tuple[PyTree, Params]:
        whole = variables | {"params": overlay(everything, params)}
        return objective.encode(whole, inputs, key, train=True)

    def combine(params: Params, outputs: PyTree) -> tuple[Array, Metrics]:
        whole = overlay(everything, params)
        loss, metrics = objective.combine(whole, outputs, batch, key_loss, **across)
        # This device's share of the global mean; the weight carries no gradient.
        weight = sum_over_devices(loss.weight, axis_name)
        return loss.sum / jnp.maximum(jax.lax.stop_gradient(weight), 1.0), metrics

    params = objective.trained(everything)
    if num_microbatches == 1:

        def whole(params: Params) -> tuple[Array, tuple[Metrics, Params, PyTree]]:
            outputs, batch_stats = encode(params, inputs, key_encode)
            loss, metrics = combine(params, outputs)
            return loss, (metrics, batch_stats, outputs)

        (loss, (metrics, batch_stats, outputs)), grads = jax.value_and_grad(whole, has_aux=True)(params)
    else:
        pieces = split_rows(inputs.rows, num_microbatches)
        keys = jax.random.split(key_encode, num_microbatches)

        def forward(piece: tuple[PyTree, Any]) -> PyTree:
            rows, key = piece
            return encode(params, Inputs(rows, inputs.shared), key)[0]

        outputs = merge_rows(jax.lax.map(forward, (pieces, keys)))
        floats, others = select_floats(outputs), select_floats(outputs, invert=True)

        def combine_pieces(params: Params, floats: PyTree) -> tuple[Array, Metrics]:
            return combine(params, join(floats, others))

        (loss, metrics), (grads, output_grads) = jax.value_and_grad(
            combine_pieces, argnums=(0, 1), has_aux=True
        )(params, floats)

        def backward(grads: Params, piece: tuple[PyTree, Any, PyTree]) -> tuple[Params, Params]:
            rows, key, output_grad = piece

            def encode_floats(params: Params) -> tuple[PyTree, Params]:
                outputs, batch_stats = encode(params, Inputs(rows, inputs.shared), key)
                return select_floats(outputs), batch_stats

            _, pull_back, batch_stats = jax.vjp(encode_floats, params, has_aux=True)
            return jax.tree.map(jnp.add, grads, pull_back(output_grad)[0]), batch_stats

        grads, batch_stats = jax.lax.scan(
            backward, grads, (pieces, keys, split_rows(output_grads, num_microbatches))
        )
        # Statistics come from the whole batch (``inputs.shared``), so every piece has computed the same.
        batch_stats = jax.tree.map(lambda leaf: leaf[-1], batch_stats)

    batch_stats = objective.update_stats(batch_stats, outputs, batch, key_stats)
    loss, grads, metrics = sum_over_devices((loss, grads, metrics), axis_name)
    return loss, grads, batch_stats, {name: divide(metric) for name, metric in metrics.items()}


def divide(loss: Loss) -> Float[Array, ""]:
    """Returns the mean of a (sum, weight); 0 where the weight is 0."""
    return loss.sum / jnp.maximum(loss.weight, 1.0)


def sum_over_devices(tree: PyTree, axis_name: str | None) -> PyTree:
    """Sums ``tree`` over the mapped axis; unchanged under global-view jit."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def select_floats(tree: PyTree, *, invert: bool = False) -> PyTree:
    """Replaces every leaf of ``tree`` that is not a float by None; with ``invert``, every leaf that is."""
    return jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.floating) != invert else None, tree)


def join(floats: PyTree, others: PyTree) -> PyTree:
    """Rebuilds the tree that `select_floats` split."""
    return jax.tree.map(lambda a, b: b if a is None else a, floats, others, is_leaf=lambda x: x is None)


def split_rows(tree: PyTree, num_pieces: int) -> PyTree:
    """Reshapes arrays [B ...] to [pieces, B / pieces, ...]; row r goes to piece r mod pieces.

    This interleaving needs no communication for a batch cut over devices: each device splits its own rows.
    """

    def split(x: Array) -> Array:
        return jnp.swapaxes(x.reshape(x.shape[0] // num_pieces, num_pieces, *x.shape[1:]), 0, 1)

    return jax.tree.map(split, tree)


def merge_rows(tree: PyTree) -> PyTree:
    """The inverse of ``split_rows``."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), tree)
