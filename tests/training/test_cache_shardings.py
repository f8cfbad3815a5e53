"""Generation on a mesh: rows over data and fsdp, heads over tensor, and the cache never gathered."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from alm_jax.encoders import family
from alm_jax.encoders.text.llama import FAMILY, LlamaConfig
from alm_jax.nn.kv_cache import CacheShape, make_cache
from alm_jax.training.mesh import MeshConfig, build_mesh
from alm_jax.training.sharding import batch_sharding, cache_shardings, parameter_shardings

MICRO = LlamaConfig(
    vocab_size=40, width=32, num_layers=2, num_heads=8, num_kv_heads=2, mlp_dim=32, max_positions=32
)
NUM_SLOTS = 11  # No other size is 11, so that the compiled program shows what is done to the cache.


def test_a_prompt_and_a_step_on_a_mesh_equal_one_device():
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    abstract = family.abstract(FAMILY, MICRO)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), abstract)
    ids = jnp.asarray(rng.integers(0, 40, (4, 7)), jnp.int32)
    mask = jnp.asarray(np.arange(7)[None, :] >= np.array([[0], [2], [3], [1]]))

    def read_on(variables, ids, mask, cache):
        return family.apply(FAMILY, MICRO, variables, ids, mask, cache=cache, output="last")

    expected = jax.jit(lambda *inputs: family.apply(FAMILY, MICRO, *inputs, output="last"))(
        variables, ids, mask
    )
    cache = make_cache(MICRO.cache_shape, 4, NUM_SLOTS, jnp.float32)
    on_mesh = cache_shardings(cache, mesh)
    assert on_mesh.key.spec == PartitionSpec(None, ("data", "fsdp"), None, "tensor", None)
    params = parameter_shardings(family.axes(FAMILY, MICRO), abstract["params"], mesh)
    rows = batch_sharding(mesh)
    step = jax.jit(
        read_on,
        in_shardings=({"params": params}, rows, rows, on_mesh),
        out_shardings=(rows, on_mesh),
        donate_argnums=3,
    )
    _, cache = step(variables, ids[:, :6], mask[:, :6], jax.device_put(cache, on_mesh))
    compiled = step.lower(variables, ids[:, 6:], mask[:, 6:], cache).compile()
    last, cache = compiled(
        *jax.device_put((variables, ids[:, 6:], mask[:, 6:]), ({"params": params}, rows, rows)), cache
    )
    np.testing.assert_allclose(last, expected, atol=1e-5)
    # Of an array as long as the cache there is no collective: each device keeps its own rows and heads.
    moved = re.findall(
        r"= (\S+) (?:all-gather|all-to-all|all-reduce|collective-permute)\(", compiled.as_text()
    )
    assert moved
    assert not [shape for shape in moved if re.search(rf"\b{NUM_SLOTS},", shape)]


def test_what_the_mesh_does_not_divide_is_whole():
    mesh = build_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    cache = jax.eval_shape(lambda: make_cache(CacheShape(2, 2, 4), 3, 8, jnp.float32))
    for sharding in cache_shardings(cache, mesh):
        assert sharding.is_fully_replicated
