"""Retrieval as classification: the float64 formula, PyTorch, and one to eight devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from alm_jax.bench.counting import count
from alm_jax.losses.retrieval import in_batch_retrieval, retrieval

EMBED_DIM = 8


def test_scores_of_any_candidates_equal_pytorch():
    rng = np.random.default_rng(0)
    scores = (4 * rng.normal(size=(5, 9))).astype(np.float32)
    positive = np.array([8, 0, 3, 3, 5], np.int32)
    mask, candidates = np.arange(5) != 1, np.arange(9) != 6
    leaf = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    allowed = leaf.masked_fill(~torch.tensor(candidates)[None], -torch.inf)
    want = torch.nn.functional.cross_entropy(
        allowed[torch.tensor(mask)], torch.tensor(positive[mask]).long(), reduction="sum"
    )
    want.backward()
    scores[1], scores[:, 6] = np.nan, np.inf
    loss = jax.jit(jax.value_and_grad(retrieval, has_aux=True))
    (total, weight), grad = loss(scores, positive, mask=mask, candidate_mask=candidates)
    np.testing.assert_allclose([total, weight], [want.item(), 4], rtol=1e-6)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-5, atol=1e-7)


def oracle(query: np.ndarray, candidate: np.ndarray, scale: float, mask: np.ndarray):
    """Sum of -log softmax of the own candidate, and the gradients of the three, in float64."""
    q, c = query[mask].astype(np.float64), candidate[mask].astype(np.float64)
    logits = scale * q @ c.T
    probability = np.exp(logits - logits.max(1, keepdims=True))
    probability /= probability.sum(1, keepdims=True)
    d_logits = probability - np.eye(len(q))
    grads = np.zeros(query.shape), np.zeros(query.shape)
    grads[0][mask], grads[1][mask] = scale * d_logits @ c, scale * d_logits.T @ q
    return -np.log(np.diag(probability)).sum(), (*grads, (d_logits * (q @ c.T)).sum())


VALUE_AND_GRAD = jax.value_and_grad(in_batch_retrieval, argnums=(0, 1, 2), has_aux=True)


def test_more_queries_than_a_block_holds():
    rng = np.random.default_rng(0)
    query, candidate = rng.normal(size=(2, 300, EMBED_DIM)).astype(np.float32)
    mask = rng.random(300) < 0.9
    want, want_grads = oracle(query, candidate, 1.5, mask)
    (total, weight), grads = jax.jit(VALUE_AND_GRAD)(query, candidate, jnp.float32(1.5), mask=mask)
    np.testing.assert_allclose([total, weight], [want, mask.sum()], rtol=1e-5)
    for got, expected in zip(grads, want_grads, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_memory_is_linear_and_flops_are_the_least_with_recomputation():
    def abstract(num_rows: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        rows = jax.ShapeDtypeStruct((num_rows, EMBED_DIM), jnp.bfloat16)
        return rows, rows, jax.ShapeDtypeStruct((), jnp.float32)

    def temp_bytes(num_rows: int) -> int:
        compiled = jax.jit(VALUE_AND_GRAD).lower(*abstract(num_rows)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temp_bytes(2048), temp_bytes(4096)
    assert large <= 2.05 * small
    assert large < 4096 * 4096 * 4 / 2
    # Scores forward, scores again, and two products of gradients.
    assert count(VALUE_AND_GRAD, *abstract(2048)).flops == 8 * 2048**2 * EMBED_DIM


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_in_batch_value_and_gradients(num_devices):
    rng = np.random.default_rng(0)
    query, candidate = rng.normal(size=(2, 16, EMBED_DIM)).astype(np.float32)
    mask = rng.random(16) < 0.7
    mask[:2] = False  # all rows of the first of eight devices
    want, want_grads = oracle(query, candidate, 2.5, mask)
    query[~mask], candidate[~mask] = np.nan, np.inf
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("data",), axis_types=(AxisType.Auto,))
    axis_name = "data" if num_devices > 1 else None

    def loss(query, candidate, scale, mask):
        result = in_batch_retrieval(query, candidate, scale, mask=mask, axis_name=axis_name)
        return result if axis_name is None else jax.lax.psum(result, axis_name)

    if axis_name is not None:
        loss = jax.shard_map(
            loss, mesh=mesh, in_specs=(P("data"), P("data"), P(), P("data")), out_specs=(P(), P())
        )
    value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (total, weight), grads = value_and_grad(query, candidate, jnp.float32(2.5), mask)
    np.testing.assert_allclose([total, weight], [want, mask.sum()], rtol=1e-5)
    for got, expected in zip(grads, want_grads, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_under_pmap_the_local_sums_differentiate_alike():
    rng = np.random.default_rng(0)
    query, candidate = rng.normal(size=(2, 8, EMBED_DIM)).astype(np.float32)
    want, want_grads = oracle(query, candidate, 2.5, np.ones(8, bool))
    loss = functools.partial(in_batch_retrieval, logit_scale=jnp.float32(2.5), axis_name="data")
    grad = jax.value_and_grad(lambda query, candidate: loss(query, candidate), argnums=(0, 1), has_aux=True)
    (total, _), grads = jax.pmap(grad, axis_name="data", devices=jax.devices()[:4])(
        query.reshape(4, 2, -1), candidate.reshape(4, 2, -1)
    )
    np.testing.assert_allclose(total.sum(), want, rtol=1e-5)
    for got, expected in zip(grads, want_grads[:2], strict=True):
        np.testing.assert_allclose(got.reshape(8, -1), expected, rtol=1e-5, atol=1e-5)
