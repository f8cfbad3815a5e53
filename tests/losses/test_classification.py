"""Classification losses against PyTorch and float64 formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from alm_jax.losses.classification import (
    binary_cross_entropy,
    cross_entropy,
    soft_cross_entropy,
)

NUM_ROWS, NUM_CLASSES = 6, 5
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
MASK = np.array([True, False, True, True, False, True])


def draw(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, labels and soft targets of six rows."""
    rng = np.random.default_rng(seed)
    logits = (3 * rng.normal(size=(NUM_ROWS, NUM_CLASSES))).astype(np.float32)
    labels = rng.integers(0, NUM_CLASSES, NUM_ROWS).astype(np.int32)
    targets = rng.dirichlet(np.ones(NUM_CLASSES), NUM_ROWS).astype(np.float32)
    return logits, labels, targets


def torch_value_and_grad(loss, logits: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean loss of PyTorch in float64 over the masked-in rows, and its gradient for all."""
    leaf = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    value = loss(leaf[torch.tensor(MASK)])
    value.backward()
    return value.item(), leaf.grad.numpy()


def check(loss, logits: np.ndarray, expected: tuple[float, np.ndarray]) -> None:
    """The quotient and its gradient equal PyTorch's mean."""

    def mean(x):
        total, weight = loss(x)
        assert total.dtype == weight.dtype == jnp.float32
        return total / weight

    value, grad = jax.jit(jax.value_and_grad(mean))(logits)
    np.testing.assert_allclose(value, expected[0], **TOLERANCE)
    np.testing.assert_allclose(grad, expected[1], **TOLERANCE)


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_equals_pytorch(weighted):
    logits, labels, _ = draw()
    weights = np.array([0.2, 1.0, 3.0, 0.5, 2.0], np.float32) if weighted else None
    reference = torch.nn.CrossEntropyLoss(weight=torch.tensor(weights).double() if weighted else None)
    expected = torch_value_and_grad(lambda x: reference(x, torch.tensor(labels[MASK]).long()), logits)
    ours = None if weights is None else jnp.asarray(weights)
    check(
        lambda x: cross_entropy(x, jnp.asarray(labels), mask=jnp.asarray(MASK), class_weights=ours),
        logits,
        expected,
    )


def test_soft_cross_entropy_equals_pytorch():
    logits, _, targets = draw()
    expected = torch_value_and_grad(
        lambda x: torch.nn.functional.cross_entropy(x, torch.tensor(targets[MASK]).double()), logits
    )
    check(lambda x: soft_cross_entropy(x, jnp.asarray(targets), mask=jnp.asarray(MASK)), logits, expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_binary_cross_entropy_equals_pytorch(weighted):
    logits, _, targets = draw()
    logits[0] *= 30  # up to 100, where s(x) alone is 1 in float32
    weights = np.array([0.2, 1.0, 3.0, 0.5, 2.0], np.float32) if weighted else None
    reference = torch.nn.BCEWithLogitsLoss(weight=torch.tensor(weights).double() if weighted else None)
    expected = torch_value_and_grad(lambda x: reference(x, torch.tensor(targets[MASK]).double()), logits)
    ours = None if weights is None else jnp.asarray(weights)
    check(
        lambda x: binary_cross_entropy(x, jnp.asarray(targets), mask=jnp.asarray(MASK), class_weights=ours),
        logits,
        expected,
    )


def test_masked_rows_may_hold_anything():
    logits, labels, targets = draw()
    mask = jnp.asarray(MASK)
    losses = {
        "hard": lambda x, y, z: cross_entropy(x, y, mask=mask, class_weights=jnp.arange(1.0, 6.0)),
        "soft": lambda x, y, z: soft_cross_entropy(x, z, mask=mask),
        "binary": lambda x, y, z: binary_cross_entropy(x, z, mask=mask),
    }
    spoilt = [np.where(MASK[:, None], logits, np.nan), np.where(MASK, labels, -100)]
    spoilt.append(np.where(MASK[:, None], targets, np.inf))
    for loss in losses.values():
        grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (want, weight), want_grad = grad(logits, labels, targets)
        (got, got_weight), got_grad = grad(*spoilt)
        np.testing.assert_array_equal([got, got_weight], [want, weight])
        np.testing.assert_array_equal(got_grad, np.where(MASK[:, None], want_grad, 0))


def test_bfloat16_logits_and_leading_axes_are_computed_in_float32():
    logits, labels, _ = draw()
    rounded = jnp.asarray(logits, jnp.bfloat16).reshape(2, 3, NUM_CLASSES)
    total, weight = jax.jit(cross_entropy)(rounded, jnp.asarray(labels).reshape(2, 3))
    exact = np.asarray(rounded.astype(jnp.float32), np.float64).reshape(NUM_ROWS, NUM_CLASSES)
    want = np.log(np.exp(exact).sum(1)) - exact[np.arange(NUM_ROWS), labels]
    np.testing.assert_allclose(total, want.sum(), **TOLERANCE)
    assert (total.dtype, weight.dtype, float(weight)) == (jnp.float32, jnp.float32, NUM_ROWS)
