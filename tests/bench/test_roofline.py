"""The roofline of five operations, for a v5e, beside their bytes and bundles; and the pieces that it is made of."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

from alm_jax.bench.by_module import module_of
from alm_jax.bench.chips import CHIPS
from alm_jax.bench.hlo import parse
from alm_jax.bench.roofline import product_cycles, roofline
from alm_jax.bench.shapes import shapes_of
from alm_jax.bench.topology import compile_for, resolve
from alm_jax.training import sharding

V5E = CHIPS["TPU v5 lite"]
MEGACYCLE_BYTES = V5E.hbm_bytes_per_s / V5E.clock_hz * 1e6


def normalise(x):
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-5)).astype(x.dtype)


# Function, inputs, million cycles of the kernel's bundles as libtpu schedules it, and bytes to and from HBM.
ROWS, SMALL, BIG = 131072, 96, 8192
OPERATIONS = {
    "a narrow product": (
        lambda x, w: x @ w,
        [((ROWS, SMALL), "bfloat16"), ((SMALL, 384), "bfloat16")],
        0.098,
        2 * ROWS * (SMALL + 384),
    ),
    "an addition": (lambda x: x + 1, [((2**26,), "bfloat16")], 0.05, 2 * 2**26 * 2),
    "a reduction": (lambda x: jnp.sum(x, axis=-1), [((2**16, 1024), "float32")], 0.12, 4 * 2**26),
    "a norm": (normalise, [((ROWS, SMALL), "bfloat16")], 0.08, 3 * 2 * ROWS * SMALL),
    "a large product": (
        lambda x, w: x @ w,
        [((BIG, BIG), "bfloat16"), ((BIG, BIG), "bfloat16")],
        8.39,
        3 * 2 * BIG**2,
    ),
}


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra `aot`)"
)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_roofline_is_close_to_the_larger_of_bundles_and_bytes(name):
    function, inputs, bundles, num_bytes = OPERATIONS[name]
    found = resolve("v5e:1x1")
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in inputs]
    lowered = jax.jit(function, in_shardings=sharding.replicated(found.mesh())).trace(*shapes).lower()
    bound = roofline(compile_for(lowered, found).text, found.chip)
    expected = max(bundles, num_bytes / MEGACYCLE_BYTES)
    assert expected / 1.3 < bound.seconds * V5E.clock_hz / 1e6 < 1.3 * expected


PRODUCT = """HloModule m, is_scheduled=true

ENTRY %e (p: bf16[1]) -> bf16[1] {{
  %a = bf16[{source}]{{0}} parameter(0)
  %b = bf16[{taps}]{{0}} parameter(1)
  ROOT %c = bf16[{out}]{{0}} convolution(%a, %b), window={{{window}}}, dim_labels={labels}
}}
"""


@pytest.mark.parametrize(
    ("source", "taps", "out", "window", "labels", "macs"),
    [
        # Attention's scores: two batch axes, 128 queries by 128 keys over 64 numbers, which pad to 128.
        (
            *("8,128,32,64", "8,128,32,64", "8,32,128,128"),
            *("size=8x32 stride=7x31 lhs_dilate=8x32", "0b1f_0o1i->01bf", 8 * 32 * 128**3),
        ),
        # A projection onto 32 heads of 128, whose axis of heads is one of the window.
        (
            *("8,128,4096,1", "4096,32,128,1", "8,128,32,128"),
            *("size=1x32 pad=0_0x31_31 rhs_reversal=0x1", "0bf1_i1o0->0b1f", 1024 * 4096 * 4096),
        ),
        # The way back from the heads, which the window contracts.
        ("8,128,32,128", "4096,32,128,1", "8,128,4096,1", "size=1x32", "0b1f_o1i0->0bf1", 1024 * 4096**2),
        # Patches of 16 by 16: 256 taps of one channel, and 512 outputs of 768 each.
        (
            "8,128,1024,1",
            "16,16,1,768",
            "8,8,64,768",
            "size=16x16 stride=16x16",
            "b01f_01io->b01f",
            4096 * 256 * 768,
        ),
    ],
)
def test_products_are_read_off_their_convolutions(source, taps, out, window, labels, macs):
    module = parse(PRODUCT.format(source=source, taps=taps, out=out, window=window, labels=labels))
    line = module.computations["e"][-1]
    # Matrix units hold 4 x 128 x 128 numbers; the clock is the stated peak over them, to 0.3 %.
    assert product_cycles(module, line, V5E) == pytest.approx(macs / (4 * 128 * 128), rel=5e-3)


def test_tiles_pad_and_memory_near_the_units_is_free():
    (shape,) = shapes_of("bf16[131072,96]{1,0:T(8,128)(2,1)}")
    assert (shape.padded, shape.hbm_bytes) == ((131072, 128), 131072 * 128 * 2)
    turned, near = shapes_of("(bf16[100,96]{0,1:T(8,128)(2,1)}, f32[4096]{0:T(1024)S(1)})")
    assert turned.padded == (128, 96)
    assert near.hbm_bytes == 0


@pytest.mark.parametrize(
    ("op_name", "expected"),
    [
        (
            "jit(step)/transpose(jvp(Llama))/while/body/closed_call/blocks/mlp/up/dot_general",
            "Llama/blocks/mlp",
        ),
        (
            "jit(step)/jvp(Llama)/checkpoint/rematted_computation/blocks/attention/exp",
            "Llama/blocks/attention",
        ),
        ("jit(step)/cond/branch_0_fun/mul", "mul"),
        ("", "(unnamed)"),
    ],
)
def test_modules_go_by_the_models_names(op_name, expected):
    assert module_of(op_name, 3) == expected
