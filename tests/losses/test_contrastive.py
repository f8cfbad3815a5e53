"""Symmetric InfoNCE against its float64 formula in every place it runs, on one to eight devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alm_jax.losses.contrastive import symmetric_infonce

EMBED_DIM = 8
# Logits reach 100, where float32 numbers are 8e-6 apart; the largest relative error measured is 2e-6.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

Result = tuple[Any, Any, tuple[Any, Any, Any]]


def oracle(audio: np.ndarray, text: np.ndarray, scale: float, mask: np.ndarray | None = None) -> Result:
    """Sum, weight and gradients of the sum (audio, text, scale) by the formula, in float64."""
    audio, text = np.asarray(audio, np.float64), np.asarray(text, np.float64)
    keep = np.ones(len(audio), bool) if mask is None else np.asarray(mask)
    a, t = audio[keep], text[keep]
    logits = scale * a @ t.T
    by_row = logits - logits.max(axis=1, keepdims=True)
    by_col = logits - logits.max(axis=0, keepdims=True)
    row = np.exp(by_row) / np.exp(by_row).sum(axis=1, keepdims=True)
    col = np.exp(by_col) / np.exp(by_col).sum(axis=0, keepdims=True)
    loss_a = np.log(np.exp(by_row).sum(axis=1)) - np.diag(by_row)
    loss_t = np.log(np.exp(by_col).sum(axis=0)) - np.diag(by_col)
    d_logits = (row + col) / 2 - np.eye(len(a))
    d_audio, d_text = np.zeros_like(audio), np.zeros_like(text)
    d_audio[keep], d_text[keep] = scale * d_logits @ t, scale * d_logits.T @ a
    return (loss_a + loss_t).sum() / 2, keep.sum(), (d_audio, d_text, (d_logits * (a @ t.T)).sum())


def embeddings(num_pairs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors, the text half way towards its audio so that losses are neither 0 nor log B."""
    rng = np.random.default_rng(seed)
    audio, noise = rng.standard_normal((2, num_pairs, EMBED_DIM))
    text = audio + noise
    norm = functools.partial(np.linalg.norm, axis=1, keepdims=True)
    return (audio / norm(audio)).astype(np.float32), (text / norm(text)).astype(np.float32)


Runner = Callable[[Any, Any, Any, Any], Result]


def make_jit(num_devices: int) -> Runner:
    """Global view: sharded inputs, the reference, the partitioner's collectives."""
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, P("data"))

    @jax.jit
    def value_and_grad(audio, text, scale, mask):
        loss = functools.partial(symmetric_infonce, mask=mask)
        (total, weight), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(audio, text, scale)
        return total, weight, grads

    def run(audio, text, scale, mask):
        audio, text, mask = jax.tree.map(lambda x: jax.device_put(x, rows), (audio, text, mask))
        return value_and_grad(audio, text, scale, mask)

    return run


def make_shard_map(*shape: int) -> Runner:
    """One device's view under shard_map, psum then grad; the batch is spread over one or two mesh axes."""
    names = ("data", "fsdp")[: len(shape)]
    axis_name = names[0] if len(names) == 1 else names
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    mesh = Mesh(devices, names, axis_types=(AxisType.Auto,) * len(shape))

    def loss(audio, text, scale, mask):
        total, weight = symmetric_infonce(audio, text, scale, mask=mask, axis_name=axis_name)
        return jax.lax.psum(total, axis_name), jax.lax.psum(weight, axis_name)

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(names), P(names), P(), P(names)),
        out_specs=(P(), P(), (P(names), P(names), P())),
    )
    def value_and_grad(audio, text, scale, mask):
        grad = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        (total, weight), grads = grad(audio, text, scale, mask)
        return total, weight, grads

    return value_and_grad


def make_pmap(num_devices: int) -> Runner:
    """One device's view under pmap: the local sum differentiated, the shared scale's gradient psum-ed."""
    devices = jax.devices()[:num_devices]

    @functools.partial(jax.pmap, axis_name="data", in_axes=(0, 0, None, 0), devices=devices)
    def value_and_grad(audio, text, scale, mask):
        loss = functools.partial(symmetric_infonce, mask=mask, axis_name="data")
        grad = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        (total, weight), (d_audio, d_text, d_scale) = grad(audio, text, scale)
        total, weight, d_scale = jax.lax.psum((total, weight, d_scale), "data")
        return total, weight, (d_audio, d_text, d_scale)

    def run(audio, text, scale, mask):
        rows = jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), (audio, text, mask))
        total, weight, (d_audio, d_text, d_scale) = value_and_grad(*rows[:2], scale, rows[2])
        shape = (-1, EMBED_DIM)
        return total[0], weight[0], (d_audio.reshape(shape), d_text.reshape(shape), d_scale[0])

    return run


@functools.cache  # one compilation serves all tests that share shapes
def runner(place: str, num_devices: int) -> Runner:
    if place == "shard_map_2d":
        return make_shard_map(num_devices // 2, 2)
    return {"jit": make_jit, "shard_map": make_shard_map, "pmap": make_pmap}[place](num_devices)


def check(got: Result, want: Result, **tolerance: float) -> None:
    """Sum, weight and all three gradients."""
    tolerance = tolerance or TOLERANCE
    np.testing.assert_allclose(got[0], want[0], **tolerance)
    assert got[1] == want[1]
    for got_grad, want_grad in zip(got[2], want[2], strict=True):
        np.testing.assert_allclose(np.asarray(got_grad, np.float64), want_grad, **tolerance)


PLACES = [(place, n) for place in ("jit", "shard_map", "pmap") for n in (1, 2, 4, 8)] + [("shard_map_2d", 8)]


@pytest.mark.parametrize(("place", "num_devices"), PLACES)
@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradients(place: str, num_devices: int, masked: bool) -> None:
    audio, text = embeddings(num_devices * 3)
    mask = None
    if masked:  # the last device has no real pair (the only one keeps one), the others miss some
        mask = np.random.default_rng(1).random(len(audio)) < 0.7
        mask[-3:], mask[0] = False, True
    got = runner(place, num_devices)(audio, text, jnp.float32(14.3), mask)
    check(got, oracle(audio, text, 14.3, mask))


@pytest.mark.parametrize("place", ["jit", "shard_map", "pmap"])
def test_one_pair_a_device_at_the_largest_scale(place: str) -> None:
    audio, text = embeddings(8)
    # A logit of 100 is known to 1e-5, and so is its softmax; gradients are up to 47: 2.7e-5 measured.
    check(
        runner(place, 8)(audio, text, jnp.float32(100.0), None),
        oracle(audio, text, 100.0),
        rtol=1e-5,
        atol=5e-5,
    )


@pytest.mark.parametrize("place", ["jit", "shard_map", "pmap"])
def test_bfloat16_embeddings_are_computed_in_float32(place: str) -> None:
    audio, text = (jnp.asarray(x, jnp.bfloat16) for x in embeddings(16))
    total, weight, grads = runner(place, 8)(audio, text, jnp.float32(50.0), None)
    want_total, want_weight, want_grads = oracle(audio, text, 50.0)
    assert total.dtype == weight.dtype == grads[2].dtype == jnp.float32
    assert grads[0].dtype == jnp.bfloat16
    check((total, weight, (0, 0, grads[2])), (want_total, want_weight, (0, 0, want_grads[2])))
    for got, want in zip(grads[:2], want_grads[:2], strict=True):  # rounded once, to 8 bits
        np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("place", ["jit", "shard_map", "pmap"])
def test_identical_rows_cost_log_of_the_batch(place: str) -> None:
    rows = np.tile(embeddings(1)[0], (16, 1))
    total, weight, _ = runner(place, 8)(rows, rows, jnp.float32(100.0), None)
    np.testing.assert_allclose(total / weight, np.log(16), rtol=1e-5)


@pytest.mark.parametrize("place", ["jit", "shard_map", "pmap"])
def test_padding_rows_may_hold_anything(place: str) -> None:
    audio, text = embeddings(16)
    mask = np.arange(16) % 3 != 1
    want = oracle(audio, text, 20.0, mask)
    audio[~mask], text[~mask] = np.nan, np.inf
    check(runner(place, 8)(audio, text, jnp.float32(20.0), mask), want)


@pytest.mark.parametrize("place", ["jit", "shard_map", "pmap"])
def test_nothing_but_padding_is_zero(place: str) -> None:
    audio, text = embeddings(16)
    got = runner(place, 8)(audio, text, jnp.float32(100.0), np.zeros(16, bool))
    check(got, (0.0, 0.0, (np.zeros_like(audio), np.zeros_like(text), 0.0)), rtol=0, atol=0)


@pytest.mark.parametrize("place", ["jit", "shard_map", "pmap"])
@pytest.mark.parametrize("scale", [0.0, 1e4, 1e20])
def test_finite_and_right_at_extreme_scales(place: str, scale: float) -> None:
    audio, text = embeddings(16)
    mask = np.arange(16) != 5
    got = runner(place, 8)(audio, text, jnp.float32(scale), mask)
    want = oracle(audio, text, scale, mask)
    # Logits of 1e4 are known to 1e-3, those of 1e20 to 1e13: relative to the scale both to float32.
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-5 * max(scale, 1))
    for grad in got[2]:
        assert np.isfinite(grad).all()


def test_swapping_the_towers_and_permuting_the_pairs_change_nothing() -> None:
    audio, text = (jnp.asarray(x) for x in embeddings(12))
    order = np.random.default_rng(2).permutation(12)
    total, _ = symmetric_infonce(audio, text, jnp.float32(30.0))
    swapped, _ = symmetric_infonce(text, audio, jnp.float32(30.0))
    permuted, _ = symmetric_infonce(audio[order], text[order], jnp.float32(30.0))
    np.testing.assert_allclose([swapped, permuted], [total, total], rtol=1e-6)


def test_torch_cross_entropy_agrees() -> None:
    torch = pytest.importorskip("torch")
    audio, text = embeddings(10)
    logits = torch.from_numpy(25.0 * audio @ text.T)
    target = torch.arange(10)
    cross_entropy = torch.nn.functional.cross_entropy
    want = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    total, weight = symmetric_infonce(jnp.asarray(audio), jnp.asarray(text), jnp.float32(25.0))
    np.testing.assert_allclose(total / weight, want.item(), rtol=1e-5)
