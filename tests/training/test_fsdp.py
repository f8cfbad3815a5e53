"""What compiled programs send between devices: under ``fsdp`` weights are gathered, and rows stay where they are."""

import re

import jax
import jax.numpy as jnp
import pytest

from alm_jax.bench.collectives import collectives
from alm_jax.encoders import family as families
from alm_jax.models.catalogue import FAMILIES
from alm_jax.training import sharding
from alm_jax.training.mesh import MeshConfig, build_mesh

ROWS_EACH = 13
"""Rows of a device: no axis of a parameter is a multiple of it, and every activation has one that is."""
PUBLISHED = [name for name, family in FAMILIES.items() if set(family.variants) != {"nano"}]


def compiled_pass(name: str, mesh_config: MeshConfig):
    """The collectives of a family's forward and backward pass, and the bytes of parameters that the mesh cuts."""
    family = FAMILIES[name]
    config = family.variants["nano"]
    mesh = build_mesh(mesh_config)
    variables = families.abstract(family, config)
    params = variables["params"]
    placed = sharding.parameter_shardings(families.axes(family, config), params, mesh)
    others = {kind: value for kind, value in variables.items() if kind != "params"}
    inputs = [
        jax.ShapeDtypeStruct((ROWS_EACH * mesh.size, *given.shape[1:]), given.dtype)
        for given in family.example(config)
    ]

    def loss(params, others, *inputs):
        with sharding.layout(mesh):
            out = families.apply(family, config, {**others, "params": params}, *inputs)
        floats = [x for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum(jnp.mean(jnp.square(x)) for x in floats)

    rows = sharding.batch_sharding(mesh)
    with jax.set_mesh(mesh):
        compiled = (
            jax.jit(
                jax.grad(loss, allow_int=True),
                in_shardings=(placed, sharding.replicated(mesh), *[rows] * len(inputs)),
                out_shardings=placed,
            )
            .lower(params, others, *inputs)
            .compile()
        )
    cut = sum(
        leaf.size * leaf.dtype.itemsize
        for leaf, where in zip(jax.tree.leaves(params), jax.tree.leaves(placed), strict=True)
        if not where.is_fully_replicated
    )
    return collectives(compiled.as_text()), cut


def moves_rows(collective) -> bool:
    """Whether an axis of what is sent counts rows, and it is no table's lookup.

    For that ids go to where the table's columns are, and the vectors come back.
    """
    if ("_take" in collective.op_name or "_embed/" in collective.op_name) and (
        collective.kind == "all-to-all" or collective.shape.startswith("s32")
    ):
        return False
    sizes = [int(size) for axes in re.findall(r"\[([\d,]+)\]", collective.shape) for size in axes.split(",")]
    return any(size % ROWS_EACH == 0 for size in sizes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_fsdp_gathers_weights_and_leaves_rows_where_they_are(name):
    found, cut = compiled_pass(name, MeshConfig(fsdp=8))
    moved = [(x.kind, x.shape, x.op_name) for x in found if moves_rows(x)]
    assert not moved
    gathered = sum(x.times * x.result_bytes for x in found if x.kind == "all-gather")
    assert gathered >= 0.9 * cut
