"""Dense and Embed against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.nn.dense import Dense, Embed, multiply

FLOAT32, BFLOAT16 = jnp.dtype("float32"), jnp.dtype("bfloat16")


def test_contracts_and_produces_several_axes():
    rng = np.random.default_rng(0)
    x, kernel, bias = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(4, 5, 6, 7)), rng.normal(size=(6, 7))
    dense = Dense((6, 7), ("a", "b", "c", "d"), FLOAT32)
    params = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    actual = dense.apply({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(actual, np.einsum("xyab,abcd->xycd", x, kernel) + bias, atol=1e-5)


def test_gradients_equal_those_of_einsum_and_need_no_transpose():
    rng = np.random.default_rng(0)
    x, kernel, weight = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((6, 4, 5), (4, 5, 6, 7), (6, 6, 7))
    )
    ours = jax.grad(lambda x, kernel: jnp.vdot(multiply(x, kernel, 2), weight), (0, 1))
    expected = jax.grad(lambda x, kernel: jnp.vdot(jnp.einsum("xab,abcd->xcd", x, kernel), weight), (0, 1))
    for actual, wanted in zip(ours(x, kernel), expected(x, kernel), strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-5)
    names = {equation.primitive.name for equation in jax.make_jaxpr(ours)(x, kernel).eqns}
    assert "dot_general" in names
    assert "transpose" not in names


def test_parameters_stay_float32_and_carry_their_names():
    dense = Dense((6, 7), ("a", "b", "c"), BFLOAT16)
    x = jnp.ones((2, 5), jnp.float32)
    params = dense.init(jax.random.key(0), x)["params"]
    assert (params["kernel"].names, params["bias"].names) == (("a", "b", "c"), ("b", "c"))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {FLOAT32}
    assert dense.apply({"params": params}, x).dtype == BFLOAT16


def test_fan_in_is_the_product_of_the_contracted_axes():
    init = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    dense = Dense((50, 20), ("a", "b", "c", "d"), FLOAT32, kernel_init=init)
    kernel = dense.init(jax.random.key(0), jnp.ones((1, 10, 40)))["params"]["kernel"].value
    assert kernel.shape == (10, 40, 50, 20)
    np.testing.assert_allclose(jnp.std(kernel), 400**-0.5, rtol=0.01)


def test_embed_looks_up_rows():
    table = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    ids = jnp.asarray([[3, 0], [8, 3]])
    actual = Embed(9, 4, ("vocab", "embed")).apply({"params": {"embedding": jnp.asarray(table)}}, ids)
    np.testing.assert_array_equal(actual, table[np.asarray(ids)])
