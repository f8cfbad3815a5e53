"""What the language-modelling loss costs at full size, as the compilers for TPUs and for the CPU say."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from alm_jax.bench import topology
from alm_jax.bench.memory import Memory, memory_of
from alm_jax.losses.language_modeling import token_loss
from alm_jax.training.mesh import MeshConfig

pytestmark = pytest.mark.slow
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra `aot`)"
)
NUM_TOKENS, WIDTH, VOCAB = 32768, 4096, 131072
ALLOWED_BYTES = 256e6


def value_and_grad(hidden: Any, kernel: Any, labels: Any, mask: Any) -> Any:
    def mean(hidden, kernel):
        total, weight = token_loss(hidden, kernel, labels, mask=mask)
        return total / weight

    return jax.value_and_grad(mean, argnums=(0, 1))(hidden, kernel)


def arguments(masked: bool) -> tuple[Any, ...]:
    shape = jax.ShapeDtypeStruct
    return (
        shape((NUM_TOKENS, WIDTH), jnp.bfloat16),
        shape((WIDTH, VOCAB), jnp.bfloat16),
        shape((NUM_TOKENS,), jnp.int32),
        shape((NUM_TOKENS,), jnp.bool_) if masked else None,
    )


def check(memory: Memory) -> None:
    beside = memory.peak_bytes - memory.argument_bytes - memory.output_bytes + memory.alias_bytes
    assert beside <= ALLOWED_BYTES


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e:1x1", "v6e:1x1"])
@pytest.mark.parametrize("masked", [False, True])
def test_one_tpu(name: str, masked: bool) -> None:
    """Of 16 GB and 32 GB, with the form that ``auto`` picks; logits would be 17 GB."""
    found = topology.resolve(name)
    with jax.set_mesh(found.mesh()):
        place = NamedSharding(found.mesh(), P())
        lowered = jax.jit(value_and_grad, in_shardings=place, out_shardings=place).lower(*arguments(masked))
    compiled = topology.compile_for(lowered, found)
    assert compiled.memory is not None, compiled.error
    assert compiled.memory.argument_bytes >= 2 * (NUM_TOKENS + VOCAB) * WIDTH
    check(compiled.memory)


@needs_libtpu
@pytest.mark.parametrize(("name", "ways"), [("v5e:2x4", 8), ("v5p:2x2x1", 4), ("v4:2x2x1", 4)])
def test_a_vocabulary_over_several_tpus(name: str, ways: int) -> None:
    """Words over ``tensor``: a share of the kernel, all tokens, and no copy of either."""
    found = topology.resolve(name)
    mesh = found.mesh(MeshConfig(data=1, tensor=ways))
    with jax.set_mesh(mesh):
        whole, cut = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, "tensor"))
        jitted = jax.jit(
            value_and_grad, in_shardings=(whole, cut, whole, None), out_shardings=(whole, (whole, cut))
        )
        lowered = jitted.lower(*arguments(False))
    compiled = topology.compile_for(lowered, found)
    assert compiled.memory is not None, compiled.error
    assert compiled.memory.argument_bytes < 2 * (NUM_TOKENS + VOCAB / (ways - 1)) * WIDTH
    check(compiled.memory)


def test_the_cpu() -> None:
    """bfloat16 too, which XLA:CPU would copy to float32."""
    check(memory_of(jax.jit(value_and_grad).lower(*arguments(False)).compile()))
