"""The TPU's attention kernel, interpreted, against the reference; and compiled for TPUs that are not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from alm_jax.bench.attention import compile_attention
from alm_jax.bench.cycles import estimate_cycles
from alm_jax.errors import UserError
from alm_jax.ops import flash_attention
from alm_jax.ops.attention import attend, choose_attention
from alm_jax.ops.flash_attention import tile
from alm_jax.training.mesh import MeshConfig, build_mesh


def draw(num_queries: int, num_keys: int, heads: int, groups: int, rows: int = 2, dtype=jnp.float32) -> list:
    rng = np.random.default_rng(0)
    shapes = [
        (rows, num_queries, heads, 8),
        (rows, num_keys, groups, 8),
        (rows, num_keys, groups, 8),
    ]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def run(impl: str, qkv: list, weights: jax.Array, **options):
    """The output, and the gradients of a weighted sum of it."""

    def loss(qkv):
        out = attend(*qkv, impl=impl, **options)
        return jnp.sum(weights * out), out

    gradients, out = jax.jit(jax.grad(loss, has_aux=True))(qkv)
    return [out, *gradients]


@pytest.mark.parametrize(
    ("lengths", "groups", "is_causal", "masked"),
    [
        # Padded keys must hide: no mask does it for the caller.
        ((40, 150), 2, False, "nothing"),
        ((150, 40), 2, True, "nothing"),
        # Several tiles, some of which a causal mask skips; holes; groups of queries.
        ((150, 150), 1, True, "holes"),
    ],
)
def test_equals_the_reference(monkeypatch, lengths, groups, is_causal, masked):
    monkeypatch.setattr(flash_attention, "MAX_TILE", 128)
    qkv = draw(*lengths, heads=2, groups=groups)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=qkv[0].shape), jnp.float32)
    options: dict = {"is_causal": is_causal}
    if masked == "holes":
        real = np.random.default_rng(2).random((2, 1, 1, lengths[1])) < 0.6
        # Queries of padding on the left see no key; nobody looks at what they give, but it must not spoil a gradient.
        real[0, ..., :20], real[1, ..., 0] = False, True
        sees = (np.tril(np.ones(lengths, bool)) & real[:, 0]).any(axis=-1)
        weights = weights * sees[:, :, None, None]
        options["mask"] = jnp.asarray(real)
    expected, *expected_gradients = run("reference", qkv, weights, **options)
    out, *gradients = run("flash", qkv, weights, **options)
    assert np.isfinite(out).all()
    looked_at = np.asarray(weights) != 0
    np.testing.assert_allclose(np.where(looked_at, out, 0), np.where(looked_at, expected, 0), atol=1e-5)
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-5)


def test_is_cut_over_the_mesh():
    """Rows over data, heads over tensor, and no row is gathered."""
    mesh = build_mesh(MeshConfig(data=4, tensor=2))
    qkv = draw(40, 40, heads=4, groups=2, rows=4)
    weights = jnp.ones(qkv[0].shape)
    expected = run("reference", qkv, weights, is_causal=True)
    placed = [jax.device_put(x, NamedSharding(mesh, P("data", None, "tensor"))) for x in qkv]
    with jax.set_mesh(mesh):
        out, *gradients = run("flash", placed, weights, is_causal=True)
        query = jnp.zeros((6, 512, 2, 8), jnp.bfloat16)
        assert choose_attention("tpu", query, query, is_plain=True) == "reference"
    assert out.sharding.is_equivalent_to(placed[0].sharding, 4)
    for actual, wanted in zip([out, *gradients], expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-5)


def test_bfloat16_is_as_good_as_the_reference():
    """Both against float32; their errors were 0.0035 and 0.0046."""
    exact = draw(40, 40, heads=2, groups=2, dtype=jnp.bfloat16)
    options = {"key_lengths": jnp.asarray([40, 25], jnp.int32)}
    wanted = attend(*(x.astype(jnp.float32) for x in exact), **options)
    for impl in ("reference", "flash"):
        out = attend(*exact, impl=impl, **options)
        assert out.dtype == jnp.bfloat16
        assert float(jnp.abs(out.astype(jnp.float32) - wanted).max()) < 0.006


@pytest.mark.parametrize(
    ("length", "expected"),
    [(1, 128), (128, 128), (129, 256), (513, 640), (640, 640), (641, 384), (1500, 512), (1536, 512)],
)
def test_tiles_fit_the_length(length, expected):
    assert tile(length) == expected


def test_what_it_cannot_do_it_says():
    qkv = draw(4, 4, heads=1, groups=1)
    for options in (
        {"bias": jnp.zeros((1, 1, 4, 4))},
        {"mask": jnp.ones((1, 1, 4, 4), jnp.bool_)},
        {"dropout_rate": 0.5, "dropout_key": jax.random.key(0)},
    ):
        with pytest.raises(UserError, match="use 'reference'"):
            attend(*qkv, impl="flash", **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "dtype", "length"),
    [("v5e:2x2", "bfloat16", 400), ("v6e:2x2", "bfloat16", 1500), ("v5e:2x2", "float32", 1500)],
)
def test_compiles_for_tpus_in_less_memory(topology, dtype, length):
    options = {"length": length, "batch": 8, "dtype": dtype, "is_causal": True, "is_masked": True}
    reference, _ = compile_attention(topology, "reference", **options)
    flash, counts = compile_attention(topology, "auto", **options)
    assert (reference.error, flash.error) == (None, None)
    assert len(counts.kernels) == 2
    assert flash.memory.temp_bytes < reference.memory.temp_bytes
    # What is around the kernels: pads and transposes, but no product.
    assert estimate_cycles(flash.text).products == 0


@pytest.mark.slow
def test_compiles_for_several_tpus_and_groups_of_queries():
    flash, _ = compile_attention(
        "v5e:2x2", "auto", length=512, batch=8, num_groups=4, head_dim=128, num_devices=4, tensor=2
    )
    assert flash.error is None
    assert flash.text.count("tpu_custom_call") == 2
