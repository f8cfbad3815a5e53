"""Where constraints stand: on a mesh of several devices, under the rules of training/sharding.py, and nowhere else."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from alm_jax.nn.dense import Dense, Embed
from alm_jax.nn.layout import constrain
from alm_jax.training import sharding
from alm_jax.training.mesh import AXES, MeshConfig, build_mesh


def constraints(function, *args) -> list[P]:
    """The PartitionSpec of every constraint in a function, in order."""
    return [
        equation.params["sharding"].spec
        for equation in jax.make_jaxpr(function)(*args).eqns
        if equation.primitive.name == "sharding_constraint"
    ]


def project(x):
    """A layer onto four heads of eight."""
    module = Dense((4, 8), ("embed", "heads", "head_dim"), jnp.dtype("bfloat16"), use_bias=False)
    kernel = jnp.ones((16, 4, 8))
    return module.apply({"params": {"kernel": kernel}}, x)


X = jnp.ones((8, 3, 16))


def test_a_layer_on_a_mesh_names_its_kernel_and_what_it_makes():
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh), sharding.layout(mesh):
        found = constraints(project, X)
    kernel, rows = P("fsdp", "tensor", None), ("data", "fsdp")
    # The kernel as the state holds it, in float32 and in the dtype of the product; what goes in and what comes out.
    assert found == [kernel, P(rows, None, None), kernel, P(rows, None, ("tensor",), None)]


def test_without_rules_or_on_one_device_or_on_mapped_axes_nothing_is_constrained():
    assert constraints(project, X) == []
    one = build_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(one), sharding.layout(one):
        assert constraints(project, X) == []
    mesh = build_mesh(MeshConfig(data=8))
    with jax.set_mesh(mesh), sharding.layout(mesh):
        mapped = jax.shard_map(
            lambda x: constrain(x, "batch", None, None), in_specs=P("data"), out_specs=P("data")
        )
        assert "sharding_constraint" not in str(jax.make_jaxpr(mapped)(X))


def test_a_table_is_looked_up_for_rows_and_not_for_positions():
    mesh = build_mesh(MeshConfig(data=8))
    table = Embed(10, 16, ("vocab", "embed"))
    params = {"params": {"embedding": jnp.ones((10, 16))}}
    with jax.set_mesh(mesh), sharding.layout(mesh):
        rows = constraints(lambda ids: table.apply(params, ids), jnp.zeros((8, 3), jnp.int32))
        positions = constraints(lambda ids: table.apply(params, ids), jnp.zeros(8, jnp.int32))
    assert rows[-1] == P(("data", "fsdp"), None, None)
    assert len(positions) == len(rows) - 1


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        (("batch", None, "embed"), (16, 5, 64), P(("data", "fsdp"), None, None)),
        (("batch", None, "mlp"), (16, 5, 64), P(("data", "fsdp"), None, ("tensor",))),
        # Neither 6 rows nor 5 heads can be cut.
        (("batch", "heads"), (6, 5), P(None, None)),
    ],
)
def test_activations_are_cut_where_the_mesh_divides_them(axes, shape, expected):
    mesh = AbstractMesh((2, 2, 2), AXES, axis_types=(AxisType.Auto,) * 3)
    assert sharding.activation_spec(axes, shape, mesh) == expected
