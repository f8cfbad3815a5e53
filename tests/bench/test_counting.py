"""Counts against closed forms: products, loops, calls, and the collectives of every kind."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from alm_jax.bench.counting import KernelCall, count
from alm_jax.training.mesh import MeshConfig, build_mesh


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_a_product():
    counts = count(jnp.dot, array(3, 5), array(5, 7))
    assert counts.flops == 2 * 3 * 5 * 7
    assert not counts.has_manual_collectives


def test_a_batched_product_and_its_gradients_cost_three():
    def loss(x, y):
        return jnp.einsum("bij,bjk->bik", x, y).sum()

    counts = count(jax.value_and_grad(loss, argnums=(0, 1)), array(2, 3, 5), array(2, 5, 7))
    assert counts.flops == 3 * (2 * 2 * 3 * 5 * 7)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution(groups):
    conv = functools.partial(
        lax.conv_general_dilated,
        window_strides=(2, 2),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    counts = count(conv, array(2, 8, 8, 4), array(3, 3, 4 // groups, 6))
    assert counts.flops == 2 * (2 * 4 * 4 * 6) * (3 * 3 * 4 // groups)


def test_loops_are_multiplied():
    def scanned(x):
        return lax.scan(lambda carry, _: (carry @ x, None), x, length=6)[0]

    def counted(x):
        return lax.fori_loop(0, 6, lambda _, carry: carry @ x, x)

    def until(x):
        return lax.while_loop(lambda carry: carry.sum() < 0, lambda carry: carry @ x, x)

    once = 2 * 4**3
    assert count(scanned, array(4, 4)).flops == 6 * once
    assert count(counted, array(4, 4)).flops == 6 * once
    unknown = count(until, array(4, 4))
    assert unknown.flops == once
    assert unknown.num_unknown_loops == 1


def test_a_traced_bound_is_an_unknown_loop():
    def counted(x, n):
        return lax.fori_loop(0, n, lambda _, carry: carry @ x, x)

    assert count(counted, array(4, 4), array(dtype=jnp.int32)).num_unknown_loops == 1


def test_calls_are_entered_and_of_branches_the_dearest_counts():
    @jax.custom_vjp
    def product(x):
        return x @ x

    product.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))

    def f(x):
        return lax.cond(x[0, 0] > 0, lambda x: x, lambda x: jax.jit(jax.checkpoint(product))(x), x).sum()

    once = 2 * 4**3
    assert count(f, array(4, 4)).flops == once
    # Forward and the two products of the rule, which has no use for the forward again.
    assert (
        count(jax.value_and_grad(lambda x: jax.checkpoint(product)(x).sum()), array(4, 4)).flops == 3 * once
    )


def test_work_outside_shard_map_is_cut_evenly():
    assert count(jnp.dot, array(8, 5), array(5, 7), num_devices=8).flops == 2 * 5 * 7


@pytest.fixture(scope="module")
def mesh():
    return build_mesh(MeshConfig(data=2, fsdp=4))


AXES = ("data", "fsdp")
ROWS, WIDTH = 16, 5
LOCAL_BYTES = ROWS // 8 * WIDTH * 4


def swap(x):
    return lax.ppermute(x, AXES, [(i, (i + 1) % 8) for i in range(8)])


@pytest.mark.parametrize(
    ("body", "out_specs", "received"),
    [
        (lambda x: lax.all_gather(x, AXES, tiled=True), P(AXES), 7 * LOCAL_BYTES),
        (lambda x: lax.all_gather(x, "fsdp", tiled=True), P(AXES), 3 * LOCAL_BYTES),
        (lambda x: lax.psum(x, AXES), P(), 2 * 7 / 8 * LOCAL_BYTES),
        (lambda x: lax.pmax(x, "data"), P("fsdp"), LOCAL_BYTES),
        (swap, P(AXES), LOCAL_BYTES),
        (lambda x: lax.psum_scatter(x, "data", tiled=True), P(AXES), LOCAL_BYTES / 2),
        (lambda x: lax.scan(lambda c, _: (swap(c), None), x, length=3)[0], P(AXES), 3 * LOCAL_BYTES),
    ],
    ids=["gather", "gather-one-axis", "psum", "pmax", "permute", "scatter", "permute-in-a-loop"],
)
def test_collectives(mesh, body, out_specs, received):
    f = jax.shard_map(body, mesh=mesh, in_specs=P(AXES), out_specs=out_specs)
    counts = count(f, array(ROWS, WIDTH), num_devices=8)
    assert counts.collective_bytes == pytest.approx(received)
    assert counts.has_manual_collectives


def test_work_inside_shard_map_is_a_device_s_own(mesh):
    f = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=P(AXES), out_specs=P(AXES))
    assert count(f, array(ROWS, WIDTH), num_devices=8).flops == 2 * 2 * 2 * WIDTH


def test_axes_left_to_the_compiler_cut_what_is_inside(mesh):
    f = jax.shard_map(
        lambda x: x @ x.T, mesh=mesh, in_specs=P("data"), out_specs=P("data"), axis_names={"data"}
    )
    assert count(jax.jit(f), array(ROWS, WIDTH), num_devices=8).flops == 2 * 8 * 8 * WIDTH / 4


def test_pmap():
    f = jax.pmap(lambda x: lax.psum(x @ x, "data"), axis_name="data")
    counts = count(f, array(8, 4, 4), num_devices=8)
    assert counts.flops == 2 * 4**3
    assert counts.collective_bytes == pytest.approx(2 * 7 / 8 * 4 * 4 * 4)


def test_a_kernel_counts_by_its_grid_and_by_its_estimate_where_it_shows_no_product():
    def kernel(x, y, out):
        out[...] = x[...] @ y[...]

    def matmul(x, y):
        return pl.pallas_call(
            kernel,
            grid=(2, 3),
            in_specs=[pl.BlockSpec((8, 16), lambda i, j: (i, 0)), pl.BlockSpec((16, 8), lambda i, j: (0, j))],
            out_specs=pl.BlockSpec((8, 8), lambda i, j: (i, j)),
            out_shape=array(16, 24),
            name="matmul",
        )(x, y)

    assert count(matmul, array(16, 16), array(16, 24)).flops == 2 * 16 * 16 * 24

    def repeated(x, y):
        return lax.fori_loop(0, 5, lambda _, total: total + matmul(x, y), matmul(x, y))

    call = KernelCall("matmul", (2, 3), (("float32", (16, 16)), ("float32", (16, 24))))
    assert count(repeated, array(16, 16), array(16, 24)).kernels == {call: 6}

    def copy(x):
        def body(x, out):
            out[...] = x[...]

        estimate = pl.CostEstimate(flops=math.factorial(5), transcendentals=0, bytes_accessed=0)
        return pl.pallas_call(body, out_shape=array(8, 8), cost_estimate=estimate)(x)

    assert count(copy, array(8, 8)).flops == 120
