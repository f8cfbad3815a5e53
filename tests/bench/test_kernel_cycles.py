"""Cycles of kernels: a listing's bundles times the tiles of every call, and what has no listing."""

import collections

import jax
import jax.numpy as jnp
import pytest

from alm_jax.bench import kernel_cycles as module
from alm_jax.bench import loss as bench
from alm_jax.bench.counting import Counts, KernelCall, count
from alm_jax.losses.contrastive import kernel_tpu
from alm_jax.losses.contrastive.sums import LogSumExp
from alm_jax.losses.contrastive.tile_table import GENERATIONS, find_tiling

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


def list_as(monkeypatch, tile) -> list[tuple]:
    """Puts a listing in the compiler's place; returns what it is asked for."""
    asked: list[tuple] = []

    def listing(*args):
        asked.append(args)
        return {"tile": list(tile), "bundles": BUNDLES}

    monkeypatch.setattr(module, "listing", listing)
    return asked


def test_cycles_are_bundles_times_tiles_times_calls(monkeypatch, tiling, counts):
    asked = list_as(monkeypatch, (tiling.rows, tiling.cols, tiling.chunk))
    num_tiles = (ROWS // tiling.rows) * (COLS // tiling.cols)
    assert num_tiles > 1
    assert module.kernel_cycles(counts.kernels, "v5e:2x2") == CALLS * num_tiles * BUNDLES
    assert asked == [("v5e:2x2", "statistics", DIM, "bfloat16", ROWS, COLS)]
    row = bench.cycle_figures(HLO, counts, "v5e:2x2")
    assert row == {
        "estimated_cycles": CALLS * num_tiles * BUNDLES + 7,
        "kernel_cycles": CALLS * num_tiles * BUNDLES,
    }


def test_the_cores_of_a_device_run_side_by_side(monkeypatch):
    list_as(monkeypatch, (512, 1024, 512))
    inputs = (("int32", (1,)), ("float32", (1,)), ("bfloat16", (2048, DIM)), ("bfloat16", (4096, DIM)))
    call = KernelCall("contrastive_gradients", (2, 2, 4), inputs)
    assert module.kernel_cycles(collections.Counter({call: 1}), "v5p:2x2x1") == 2 * 4 * BUNDLES


def test_a_listing_of_other_tiles_is_refused(monkeypatch, tiling, counts):
    list_as(monkeypatch, (tiling.rows // 2, tiling.cols, tiling.chunk))
    with pytest.raises(RuntimeError, match="do not belong together"):
        module.kernel_cycles(counts.kernels, "v5e:2x2")


def test_a_program_with_a_kernel_that_has_no_listing_has_no_estimate():
    counts = Counts(kernels=collections.Counter({KernelCall("attention", (4,), ()): 1}))
    assert bench.cycle_figures(HLO, counts, "v5e:2x2") == {"estimated_cycles": None, "kernel_cycles": None}
    assert bench.cycle_figures(HLO, Counts(), "v5e:2x2") == {"estimated_cycles": 7}
