"""What a state takes of each device: as the arrays of a real one do."""

import dataclasses
from pathlib import Path

import jax
import pytest

from alm_jax.bench.footprint import measure_footprint
from alm_jax.bench.step import abstract_batch, build
from alm_jax.errors import UserError
from alm_jax.run.experiment import load_config
from alm_jax.training.lora import LoraConfig
from alm_jax.training.mesh import MeshConfig, build_mesh

CONFIG = Path(__file__).parents[1] / "cli" / "tiny_config.py"
MESH = MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def config():
    config = load_config(CONFIG)
    return dataclasses.replace(config, training=dataclasses.replace(config.training, mesh=MESH))


def test_it_is_what_the_arrays_of_a_state_take(config):
    footprint = measure_footprint(config, 8)
    state = build(config, build_mesh(MESH)).init()

    def own_bytes(tree) -> int:
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    assert footprint.bytes_per_device == {
        "parameters": own_bytes(state.params),
        # Everything trains: a gradient for each parameter.
        "gradients": own_bytes(state.params),
        "optimizer": own_bytes(state.opt_state),
        "average": own_bytes(state.ema_params),
        "statistics": own_bytes(state.batch_stats),
        # Rows over data and fsdp.
        "batch": sum(x.size * x.dtype.itemsize for x in abstract_batch(config).values()) // 4,
    }
    assert footprint.total_bytes == sum(footprint.bytes_per_device.values())
    assert own_bytes(state.params) < 0.4 * sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    (largest,) = footprint.largest(1)
    assert largest.path == "text/token_embed/embedding"
    assert (largest.cut, largest.shape) == (("tensor", "fsdp"), (320, 32))
    assert footprint.replicated == []


def test_what_stands_still_has_no_gradient(config):
    lora = LoraConfig(targets=("^text/.*attention/.*kernel$",), rank=2)
    frozen = dataclasses.replace(config.optimizer, frozen=("^audio/", "^text/"))
    adapted = measure_footprint(dataclasses.replace(config, lora=lora, optimizer=frozen), 8)
    whole = measure_footprint(config, 8)
    added = adapted.num_parameters - whole.num_parameters
    assert added > 0
    assert added < adapted.num_trained < added + 5000
    assert adapted.bytes_per_device["gradients"] < 0.2 * whole.bytes_per_device["gradients"]


def test_a_mesh_that_cannot_be(config):
    with pytest.raises(UserError, match="does not fit 6 device"):
        measure_footprint(config, 6)
    training = dataclasses.replace(config.training, parallelism="pmap")
    with pytest.raises(UserError, match="under jit"):
        measure_footprint(dataclasses.replace(config, training=training), 8)
