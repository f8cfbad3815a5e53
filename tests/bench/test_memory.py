"""The compiler's memory of a program whose needs are plain."""

import jax
import jax.numpy as jnp

from alm_jax.bench.memory import memory_of

SIZE = 512
MATRIX_BYTES = SIZE * SIZE * 4


def test_inputs_outputs_and_scratch():
    x = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32)
    # The third product needs the first two whole.
    memory = memory_of(jax.jit(lambda x, y: (x @ y) @ (y @ x)).lower(x, x).compile())
    assert memory.argument_bytes == 2 * MATRIX_BYTES
    assert memory.output_bytes == MATRIX_BYTES
    assert memory.alias_bytes == 0
    assert memory.temp_bytes == 2 * MATRIX_BYTES
    assert memory.peak_bytes == 5 * MATRIX_BYTES


def test_a_donated_input_is_counted_once():
    x = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32)
    memory = memory_of(jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile())
    assert memory.alias_bytes == MATRIX_BYTES
    assert memory.peak_bytes == MATRIX_BYTES + memory.temp_bytes
