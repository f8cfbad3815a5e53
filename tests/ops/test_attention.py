"""Attention against PyTorch's scaled_dot_product_attention."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from alm_jax.errors import UserError
from alm_jax.ops.attention import attend, choose_attention
from alm_jax.training.mesh import MeshConfig, build_mesh

BATCH, QUERIES, KEYS, HEADS, SIZE = 3, 5, 7, 2, 8


@pytest.fixture
def draw(rng) -> Callable[..., np.ndarray]:
    return lambda *shape: rng.normal(size=shape).astype(np.float32)


@pytest.fixture
def qkv(draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        draw(BATCH, QUERIES, HEADS, SIZE),
        draw(BATCH, KEYS, HEADS, SIZE),
        draw(BATCH, KEYS, HEADS, SIZE),
    )


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
def test_equals_pytorch(rng, draw, qkv, with_bias, with_mask):
    bias = draw(1, HEADS, QUERIES, KEYS) if with_bias else None
    mask = rng.random((BATCH, 1, 1, KEYS)) < 0.6 if with_mask else None
    added = torch.zeros(BATCH, HEADS, QUERIES, KEYS)
    if bias is not None:
        added = added + torch.tensor(bias)
    if mask is not None:
        mask[..., 0] = True
        added = added.masked_fill(~torch.tensor(mask), -torch.inf)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(torch.tensor(x).transpose(1, 2) for x in qkv), attn_mask=added
    ).transpose(1, 2)
    actual = attend(
        *map(jnp.asarray, qkv),
        bias=None if bias is None else jnp.asarray(bias),
        mask=None if mask is None else jnp.asarray(mask),
    )
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("impl", ["reference", "xla"])
def test_scores_have_another_scale_where_asked(qkv, impl):
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(torch.tensor(x).transpose(1, 2) for x in qkv), scale=1.0
    ).transpose(1, 2)
    np.testing.assert_allclose(attend(*map(jnp.asarray, qkv), scale=1.0, impl=impl), expected, atol=1e-6)


def test_leading_axes_are_free(qkv):
    query, key, value = map(jnp.asarray, qkv)
    nested = attend(query[None], key[None], value[None])
    alone = attend(query[0], key[0], value[0])
    np.testing.assert_allclose(nested[0, 0], alone, atol=1e-6)


def test_fully_masked_query_is_finite_and_so_is_its_gradient(qkv):
    query, key, value = map(jnp.asarray, qkv)
    mask = jnp.zeros((BATCH, 1, 1, KEYS), jnp.bool_)
    out = attend(query, key, value, mask=mask)
    np.testing.assert_allclose(out[:, 0], jnp.mean(value, axis=1), atol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(attend(*x, mask=mask) ** 2)))
    gradients = gradient((query, key, value))
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradients)


def test_bfloat16_keeps_the_softmax_in_float32(qkv):
    """The weights of 4096 equal keys are 1/4096: a sum in bfloat16 would stop growing at 256."""
    query = jnp.zeros((1, 1, 1, 8), jnp.bfloat16)
    key, value = jnp.zeros((1, 4096, 1, 8), jnp.bfloat16), jnp.ones((1, 4096, 1, 8), jnp.bfloat16)
    out = attend(query, key, value)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(out, np.float32), 1.0)


def test_dropout_keeps_the_mean_and_is_off_without_a_key(qkv):
    query, key, value = map(jnp.asarray, qkv)
    plain = attend(query, key, value)
    np.testing.assert_array_equal(attend(query, key, value, dropout_rate=0.5), plain)

    def dropped(dropout_key):
        return attend(query, key, value, dropout_rate=0.5, dropout_key=dropout_key)

    samples = np.asarray(jax.jit(jax.vmap(dropped))(jax.random.split(jax.random.key(0), 1000)))
    error = samples.std(axis=0) / 1000**0.5
    assert (np.abs(samples.mean(axis=0) - plain) / error).max() < 5
    assert samples.std(axis=0).min() > 0.01


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("keys_seen", ["all", "mask", "lengths"])
def test_library_equals_the_reference(draw, qkv, with_bias, keys_seen):
    """Values and gradients, two leading axes, a bias that broadcasts over one of them."""
    nested = [jnp.stack([jnp.asarray(x), 2 * jnp.asarray(x)]) for x in qkv]
    options: dict = {"bias": jnp.asarray(draw(1, 1, HEADS, QUERIES, KEYS))} if with_bias else {}
    lengths = jnp.asarray([[3, KEYS, 1], [2, 5, 6]], jnp.int32)
    if keys_seen == "mask":
        options["mask"] = jnp.asarray(np.arange(KEYS) < np.asarray(lengths)[..., None])[:, :, None, None, :]
    elif keys_seen == "lengths":
        options["key_lengths"] = lengths

    def run(impl):
        return jax.value_and_grad(lambda x: jnp.sum(jnp.sin(attend(*x, impl=impl, **options))))(nested)

    (expected, expected_grads), (actual, grads) = run("reference"), run("xla")
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    for a, b in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_lengths_are_a_mask(qkv):
    lengths = jnp.asarray([3, KEYS, 1], jnp.int32)
    mask = jnp.asarray(np.arange(KEYS) < np.asarray(lengths)[:, None])[:, None, None, :]
    np.testing.assert_array_equal(
        attend(*map(jnp.asarray, qkv), key_lengths=lengths), attend(*map(jnp.asarray, qkv), mask=mask)
    )


@pytest.mark.parametrize(
    ("platform", "dtype", "lengths", "size", "is_plain", "expected"),
    [
        ("gpu", jnp.bfloat16, (512, 512), 64, True, "cudnn"),
        ("cpu", jnp.bfloat16, (512, 512), 64, True, "reference"),
        ("tpu", jnp.bfloat16, (512, 512), 64, True, "flash"),
        ("tpu", jnp.float32, (1500, 513), 80, True, "flash"),
        ("tpu", jnp.float16, (512, 512), 64, True, "reference"),
        ("tpu", jnp.bfloat16, (512, 383), 64, True, "reference"),
        ("tpu", jnp.bfloat16, (512, 512), 64, False, "reference"),
        ("gpu", jnp.float32, (512, 512), 64, True, "reference"),
        ("gpu", jnp.bfloat16, (77, 77), 64, True, "reference"),
        ("gpu", jnp.bfloat16, (512, 129), 64, True, "reference"),
        ("gpu", jnp.bfloat16, (512, 512), 60, True, "reference"),
        ("gpu", jnp.bfloat16, (512, 512), 64, False, "reference"),
    ],
)
def test_auto_follows_its_table(platform, dtype, lengths, size, is_plain, expected):
    query, key = (jnp.zeros((2, length, 4, size), dtype) for length in lengths)
    with jax.set_mesh(build_mesh(MeshConfig(data=2), jax.devices()[:2])):
        assert choose_attention(platform, query, key, is_plain=is_plain) == expected


def test_auto_follows_the_mask_and_the_devices():
    x = jnp.zeros((2, 512, 4, 64), jnp.bfloat16)
    # Eight devices and no mesh: whoever cuts the program cannot cut the kernel.
    assert choose_attention("tpu", x, x, is_plain=True) == "reference"
    with jax.set_mesh(build_mesh(MeshConfig(data=2), jax.devices()[:2])):
        chosen = {
            (platform, seen): choose_attention(platform, x, x, is_plain=True, seen=seen)
            for platform in ("tpu", "gpu")
            for seen in ("all", "keys", "pairs")
        }
    assert chosen == {
        ("tpu", "all"): "flash",
        ("tpu", "keys"): "flash",
        ("tpu", "pairs"): "reference",
        ("gpu", "all"): "cudnn",
        ("gpu", "keys"): "reference",
        ("gpu", "pairs"): "reference",
    }


@pytest.mark.parametrize("impl", ["reference", "xla"])
@pytest.mark.parametrize("keys", [QUERIES, KEYS])
def test_causal_equals_pytorch(qkv, impl, keys):
    """Query i sees keys up to i, also where there are more keys than queries; with padding besides."""
    query, key, value = qkv[0], qkv[1][:, :keys], qkv[2][:, :keys]
    real = np.arange(keys) < np.asarray([2, keys, 4])[:, None]
    seen = np.tril(np.ones((QUERIES, keys), bool)) & real[:, None, None]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(torch.tensor(x).transpose(1, 2) for x in (query, key, value)), attn_mask=torch.tensor(seen)
    ).transpose(1, 2)
    arrays = [jnp.asarray(x) for x in (query, key, value)]
    for padding in ({"mask": jnp.asarray(real)[:, None, None]}, {"key_lengths": jnp.asarray([2, keys, 4])}):
        out = attend(*arrays, is_causal=True, impl=impl, **padding)
        np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize("impl", ["reference", "xla"])
def test_groups_of_queries_share_keys_as_in_pytorch(draw, qkv, impl):
    query = draw(BATCH, QUERIES, 3 * HEADS, SIZE)
    bias = draw(1, 3 * HEADS, QUERIES, KEYS)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(torch.tensor(x).transpose(1, 2) for x in (query, *qkv[1:])),
        attn_mask=torch.tensor(bias),
        enable_gqa=True,
    ).transpose(1, 2)
    actual = attend(*map(jnp.asarray, (query, *qkv[1:])), bias=jnp.asarray(bias), impl=impl)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_a_form_that_cannot_says_so(qkv):
    with pytest.raises(UserError, match="no dropout"):
        attend(*map(jnp.asarray, qkv), dropout_rate=0.1, dropout_key=jax.random.key(0), impl="xla")
    with pytest.raises(UserError, match="key_lengths"):
        attend(*map(jnp.asarray, qkv), mask=jnp.ones((1, 1, 1, KEYS), jnp.bool_), impl="cudnn")
