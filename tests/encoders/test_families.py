"""What every family of the zoo promises: full sizes with shardings, gradients everywhere, no cross-talk of rows."""

import dataclasses
import functools
import inspect
import zlib
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from alm_jax.encoders import audio, text
from alm_jax.encoders import family as zoo
from alm_jax.encoders.families import families_in, family_of, register
from alm_jax.encoders.family import Option
from alm_jax.errors import UserError
from alm_jax.training.mesh import MeshConfig, build_mesh
from alm_jax.training.sharding import is_axes, parameter_shardings, replicated_fraction

# The registry would do, but it also holds what other tests have imported by now.
FAMILIES = {family.name: family for package in (audio, text) for family in families_in(package)}
VARIANTS = [(name, variant) for name, family in FAMILIES.items() for variant in family.variants]


def real_inputs(family: zoo.Family, config: object) -> list[jax.Array]:
    """Arguments of a forward pass for two rows that differ, all of them real."""
    rng = np.random.default_rng(zlib.crc32(family.name.encode()))
    vocab_size = getattr(config, "vocab_size", 16)
    inputs = []
    for given in family.example(config):
        if jnp.issubdtype(given.dtype, jnp.bool_):
            inputs.append(jnp.ones(given.shape, jnp.bool_))
        elif jnp.issubdtype(given.dtype, jnp.integer):
            inputs.append(jnp.asarray(rng.integers(2, vocab_size, given.shape), given.dtype))
        else:
            inputs.append(jnp.asarray(rng.normal(size=given.shape), given.dtype))
    return inputs


def float_outputs(output: object) -> list[jax.Array]:
    return [leaf for leaf in jax.tree.leaves(output) if jnp.issubdtype(leaf.dtype, jnp.floating)]


@functools.cache
def nano(name: str):
    """Config, variables that are no symmetric start, and a gradient function of a nano model."""
    family = FAMILIES[name]
    config = family.variants["nano"]
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda x: x + 0.05 * jnp.asarray(rng.normal(size=x.shape), x.dtype),
        zoo.init(family, config, jax.random.key(0)),
    )

    @functools.partial(jax.jit, static_argnames="remat")
    def weigh(variables, inputs, weights, remat):
        def loss(params):
            output = zoo.apply(family, config, variables | {"params": params}, *inputs, remat=remat)
            total = sum(jnp.vdot(w, x) for w, x in zip(weights, float_outputs(output), strict=True))
            return total, output

        (_, output), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return output, grads

    inputs = real_inputs(family, config)
    shapes = jax.eval_shape(lambda v, x: zoo.apply(family, config, v, *x), variables, inputs)
    weights = [jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in float_outputs(shapes)]
    return variables, inputs, weights, weigh


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_full_sizes_build_abstractly_and_are_cut_over_a_mesh(name, variant):
    family = FAMILIES[name]
    config = family.variants[variant]
    assert type(config) is family.config_type
    shapes, axes = zoo.abstract(family, config)["params"], zoo.axes(family, config)
    jax.tree.map(
        lambda names, leaf: np.testing.assert_equal(len(names), leaf.ndim), axes, shapes, is_leaf=is_axes
    )
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = parameter_shardings(axes, shapes, mesh)
    if variant != "nano":
        assert replicated_fraction(shapes, shardings) < 0.02
    used = {axis for sharding in jax.tree.leaves(shardings) for axis in sharding.spec}
    assert {"fsdp", "tensor"} <= used
    assert all(isinstance(sharding.spec, PartitionSpec) for sharding in jax.tree.leaves(shardings))


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_every_parameter(name):
    variables, inputs, weights, weigh = nano(name)
    _, grads = weigh(variables, inputs, weights, "none")
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.isfinite(grad).all(), jax.tree_util.keystr(path)
        assert np.any(np.asarray(grad) != 0), jax.tree_util.keystr(path)


LONG_TO_COMPILE = {"htsat", "htsat_fusion", "encodec"}
REMATERIALISED = [
    pytest.param(name, remat, marks=[pytest.mark.slow] * (remat == "dots" or name in LONG_TO_COMPILE))
    for name in FAMILIES
    for remat in ("block", "dots")
]


@pytest.mark.parametrize(("name", "remat"), REMATERIALISED)
def test_rematerialisation_changes_nothing(name, remat):
    variables, inputs, weights, weigh = nano(name)
    output, grads = weigh(variables, inputs, weights, "none")
    again, grads_again = weigh(variables, inputs, weights, remat)
    scale = max(float(jnp.max(jnp.abs(grad))) for grad in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), output, again)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), grads, grads_again)


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_do_not_see_each_other(name):
    """Swapping the rows swaps the outputs, and a row's output is the same beside another neighbour."""
    variables, inputs, weights, weigh = nano(name)
    output, _ = weigh(variables, inputs, weights, "none")
    swapped, _ = weigh(variables, [x[::-1] for x in inputs], weights, "none")
    twice, _ = weigh(variables, [jnp.concatenate([x[:1], x[:1]]) for x in inputs], weights, "none")
    for usual, other, same in zip(*map(float_outputs, (output, swapped, twice)), strict=True):
        np.testing.assert_allclose(other[::-1], usual, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(same[0], usual[0], rtol=1e-5, atol=1e-5)
        assert np.any(np.abs(usual[0] - usual[1]) > 1e-3), "the rows differ, their outputs should"


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_scan_over_layers_is_a_loop(name):
    """Without jit JAX runs a scan as a Python loop."""
    family = FAMILIES[name]
    variables, inputs, weights, weigh = nano(name)
    output, _ = weigh(variables, inputs, weights, "none")
    with jax.disable_jit():
        looped = zoo.apply(family, family.variants["nano"], variables, *inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), output, looped)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_declares_what_its_module_takes(name):
    """The keyword arguments that a tower may be given, and the output for states."""
    family = FAMILIES[name]
    module = family.build(family.variants["nano"], jnp.dtype("float32"), "none")
    parameters = set(inspect.signature(type(module).__call__).parameters)
    positional = {"mask"} if family.kind != "audio encoder" else set()
    assert family.takes == parameters & set(get_args(Option)) - positional
    assert (family.states is not None) == (family.kind == "audio encoder" and hasattr(module, "output"))
    assert family.state_mask is None or "mask" in family.takes


def test_a_second_family_of_a_name_or_a_config_is_refused():
    with pytest.raises(UserError, match="give it its own name and config type"):
        register(dataclasses.replace(FAMILIES["bert"], name="another"))
    assert register(FAMILIES["bert"]) is FAMILIES["bert"]


def test_a_config_finds_its_family():
    for family in FAMILIES.values():
        assert family_of(family.variants["nano"]) is family
    with pytest.raises(UserError, match="belongs to no family"):
        family_of(3)
