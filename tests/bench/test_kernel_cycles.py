"""Cycles of kernels: a listing's bundles times the tiles of every call."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from alm_jax.bench import kernel_cycles as module
from alm_jax.bench import loss as bench
from alm_jax.bench.bundles import MACS_PER_CYCLE
from alm_jax.bench.counting import Counts, count
from alm_jax.losses.contrastive import kernel_tpu
from alm_jax.losses.contrastive.tile_table import GENERATIONS, find_tiling
from alm_jax.losses.sums import LogSumExp

ROWS, COLS, DIM, CALLS, BUNDLES = 1024, 4096, 512, 3, 1000
DEVICE = "TPU v5 lite"
HLO = (
    "HloModule jit_f, is_scheduled=true\n\nENTRY %main (p: f32[]) -> f32[] {\n  %p = f32[] parameter(0)\n"
    '  ROOT %c = f32[] copy(%p), backend_config={"estimated_cycles":"7"}\n}\n'
)


@pytest.fixture(scope="module")
def tiling():
    return find_tiling("statistics", GENERATIONS[DEVICE], "bfloat16", DIM, ROWS, COLS)


@pytest.fixture(scope="module")
def counts(tiling) -> Counts:
    """Of a loop over the kernel of the log-sum-exps, traced alone."""

    def body(_, states):
        audio, text = jnp.zeros((ROWS, DIM), jnp.bfloat16), jnp.zeros((COLS, DIM), jnp.bfloat16)
        ids = jnp.arange(ROWS), jnp.arange(COLS)
        return kernel_tpu.block_statistics(audio, text, jnp.float32(1), *ids, *states, tiling=tiling)

    def loop():
        return jax.lax.fori_loop(0, CALLS, body, (LogSumExp.empty(ROWS), LogSumExp.empty(COLS)))

    return count(loop)


@pytest.fixture
def listed(monkeypatch) -> list[str]:
    """Puts a count of bundles in the compiler's place; the kinds that it is asked for."""
    asked: list[str] = []

    def bundles(call, kind):
        asked.append(kind)
        return BUNDLES

    monkeypatch.setattr(module, "_bundles", bundles)
    return asked


def test_cycles_are_bundles_times_tiles_times_calls(listed, tiling, counts):
    num_tiles = (ROWS // tiling.rows) * (COLS // tiling.cols)
    assert num_tiles > 1
    assert module.kernel_cycles(counts.kernels, "v5e:2x2") == CALLS * num_tiles * BUNDLES
    assert listed == ["v5e"]
    row = bench.cycle_figures(HLO, counts, "v5e:2x2")
    assert row == {
        "estimated_cycles": CALLS * num_tiles * BUNDLES + 7,
        "kernel_cycles": CALLS * num_tiles * BUNDLES,
    }
    assert bench.cycle_figures(HLO, Counts(), "v5e:2x2") == {"estimated_cycles": 7}


@pytest.mark.usefixtures("listed")
def test_the_cores_of_a_device_run_side_by_side():
    def copy(source, target):
        target[...] = source[...]

    def call(semantics):
        params = pltpu.CompilerParams(dimension_semantics=semantics)
        spec = pl.BlockSpec((8, 128), lambda i, j: (i, j))
        x = jax.ShapeDtypeStruct((32, 256), jnp.float32)
        run = pl.pallas_call(
            copy, x, grid=(4, 2), in_specs=[spec], out_specs=spec, compiler_params=params, name="copy"
        )
        return count(run, x).kernels

    parallel, serial = call(("parallel", "arbitrary")), call(("arbitrary", "arbitrary"))
    assert module.kernel_cycles(parallel, "v5p:2x2x1") == 4 * 2 * BUNDLES // 2
    assert module.kernel_cycles(serial, "v5p:2x2x1") == 4 * 2 * BUNDLES
    assert module.kernel_cycles(parallel, "v5e:2x2") == 4 * 2 * BUNDLES


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra `aot`)"
)
def test_a_kernel_is_compiled_alone(counts):
    """That of the log-sum-exps: no fewer bundles than its products take on the matrix units."""
    cycles = module.kernel_cycles(counts.kernels, "v5e:2x2")
    bound = CALLS * ROWS * COLS * DIM / MACS_PER_CYCLE[DEVICE]
    assert bound <= cycles <= 1.5 * bound
