"""Cycles and overlap read off a small scheduled module, written by hand in the compiler's form."""

import pytest
from transfer_schedule import transfers

from alm_jax.bench.cycles import estimate_cycles
from alm_jax.bench.hlo import parse

# A ring of eight: the forward loop sends its block around the tile loop, then one row of sums with nothing to hide it.
MODULE = """HloModule jit_f, is_scheduled=true, num_partitions=8

%tile (p: (s32[], f32[512])) -> (s32[], f32[512]) {
  %p = (s32[]{:T(128)}, f32[512]{0:T(512)S(1)}) parameter(0)
  %fusion.1 = (f32[512]{0:T(512)S(1)}, f32[512,512]{1,0:T(8,128)S(1)}) fusion(%p), kind=kOutput, calls=%fused.1, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %fusion.2 = (s32[]{:T(128)}, f32[512]{0}) fusion(%p, %fusion.1), kind=kLoop, calls=%fused.2, \
backend_config={"window_config":{"estimated_cycles":"10"}}
}

%tile_condition (c: (s32[], f32[512])) -> pred[] {
  %c = (s32[]{:T(128)}, f32[512]{0:T(512)}) parameter(0)
  %bound = s32[]{:T(128)} constant(4)
  ROOT %less = pred[]{:T(512)} compare(%c, %bound), direction=LT
}

%ring (r: (s32[], bf16[1024,512])) -> (s32[], bf16[1024,512]) {
  %r = (s32[]{:T(128)}, bf16[1024,512]{1,0:T(8,128)(2,1)}) parameter(0)
  %collective-permute-start.3 = (bf16[1024,512]{1,0:T(8,128)(2,1)}, bf16[1024,512]{1,0:T(8,128)(2,1)S(1)}, \
u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%r), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %while.1 = (s32[]{:T(128)}, f32[512]{0:T(512)S(1)}) while(%r), condition=%tile_condition, body=%tile
  %collective-permute-start.30 = (f32[1024]{0:T(1024)S(1)}, f32[1024]{0:T(1024)S(1)}, u32[], u32[]) \
collective-permute-start(%while.1), channel_id=2, source_target_pairs={{0,1},{1,0}}
  %collective-permute-done.30 = f32[1024]{0} collective-permute-done(%collective-permute-start.30)
  %kernel = f32[8]{0} custom-call(%r), custom_call_target="tpu_custom_call"
  %buffer = f32[8]{0} custom-call(), custom_call_target="AllocateBuffer"
  %collective-permute-done.3 = bf16[1024,512]{1,0} collective-permute-done(%collective-permute-start.3)
  ROOT %t = (s32[]{:T(128)}, bf16[1024,512]{1,0:T(8,128)(2,1)}) tuple(%collective-permute-done.3)
}

%dear (d: f32[8]) -> f32[8] {
  ROOT %d1 = f32[8]{0} convolution(f32[8]{0} %d), backend_config={"window_config":{"estimated_cycles":"7"}}
}

%cheap (e: f32[8]) -> f32[8] {
  ROOT %e1 = f32[8]{0} add(f32[8]{0} %e), backend_config={"window_config":{"estimated_cycles":"1"}}
}

%unbounded (u: f32[8]) -> pred[] {
  ROOT %u1 = pred[] parameter(0)
}

ENTRY %main.28_spmd (a: bf16[1024,512]) -> bf16[1024,512] {
  %a = bf16[1024,512]{1,0:T(8,128)(2,1)} parameter(0)
  %while.2 = (s32[]{:T(128)}, bf16[1024,512]{1,0:T(8,128)(2,1)}) while(%a), condition=%tile_condition, body=%ring, \
backend_config={"known_trip_count":{"n":"8"}}
  %choice = f32[8]{0} conditional(%a), branch_computations={%dear, %cheap}
  %call.1 = f32[8]{0} call(%a), to_apply=%cheap
  %while.3 = f32[8]{0} while(%a), condition=%unbounded, body=%cheap
  ROOT %copy = bf16[1024,512]{1,0} copy(%a), backend_config={"window_config":{"estimated_cycles":"1000"}}
}
"""


def test_the_module_is_read():
    module = parse(MODULE)
    assert module.entry == "main.28_spmd"
    assert module.is_scheduled
    assert [line.opcode for line in module.computations["tile"]] == ["parameter", "fusion", "fusion"]


def test_cycles_are_multiplied_by_loops():
    cycles = estimate_cycles(MODULE)
    assert cycles.total == 8 * 4 * (100 + 10) + 7 + 1 + 1 + 1000
    assert cycles.products == 8 * 4 * 100 + 7
    assert cycles.num_unknown_loops == 1


def test_no_estimates_are_no_cycles():
    assert estimate_cycles(MODULE.replace("estimated_cycles", "something")) is None


def test_what_runs_while_a_block_travels():
    block, sums = transfers(MODULE)
    assert (block.computation, block.shape) == ("ring", "bf16[1024,512]")
    assert block.loops == ("while.1",)
    assert block.kernels == ("kernel",)
    assert block.is_overlapped
    assert sums.shape == "f32[1024]"
    assert not sums.is_overlapped


def test_without_a_schedule_there_is_no_order():
    with pytest.raises(ValueError, match="not scheduled"):
        transfers(MODULE.replace("is_scheduled=true", "is_scheduled=false"))
    with pytest.raises(ValueError, match="no HLO module"):
        transfers("")
