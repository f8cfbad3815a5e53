"""Collectives read off a compiled program's text, written by hand in the compiler's form."""

import pytest

from alm_jax.bench.collectives import collectives

GATHER = (
    "all-gather(%p), channel_id=7, replica_groups=mesh['axis_0'=8,'axis_1'=32] {'axis_1'}, dimensions={0}"
)
# A loop of four layers: a gather that a product hides, printed three times, and a synchronous sum of gradients.
MODULE = f"""HloModule jit_f, is_scheduled=true, num_partitions=256

%start (p: bf16[1,128]) -> bf16[32,128] {{
  %p = bf16[1,128]{{1,0}} parameter(0)
  ROOT %g.0 = bf16[32,128]{{1,0}} {GATHER}
}}

%hides (p: bf16[1,128]) -> bf16[32,128] {{
  %p = bf16[1,128]{{1,0}} parameter(0)
  ROOT %g.1 = bf16[32,128]{{1,0}} {GATHER}
}}

%body (b: (s32[], bf16[1,128])) -> (s32[], bf16[1,128]) {{
  %b = (s32[], bf16[1,128]{{1,0}}) parameter(0)
  %async-collective-start = (bf16[1,128]{{1,0}}, bf16[32,128]{{1,0}}) fusion(%b), kind=kCustom, calls=%start
  %element = bf16[32,128]{{1,0}} get-tuple-element(%async-collective-start), index=1
  %fusion.9 = bf16[32,128]{{1,0}} fusion(%element), kind=kOutput, calls=%hides, \
backend_config={{"estimated_cycles":"500"}}
  %async-collective-done = bf16[32,128]{{1,0}} fusion(%fusion.9), kind=kCustom, calls=%hides
  %after = bf16[32,128]{{1,0}} copy(%async-collective-done), backend_config={{"estimated_cycles":"90"}}
  %all-reduce.1 = f32[64]{{0}} all-reduce(%after), channel_id=8, replica_groups=[32,8]<=[256], to_apply=%add
  ROOT %t = (s32[], bf16[1,128]{{1,0}}) tuple(%all-reduce.1)
}}

%condition (c: (s32[], bf16[1,128])) -> pred[] {{
  %c = (s32[], bf16[1,128]{{1,0}}) parameter(0)
  ROOT %less = pred[] compare(%c, %c), direction=LT
}}

ENTRY %main (a: bf16[1,128]) -> bf16[1,128] {{
  %a = bf16[1,128]{{1,0}} parameter(0)
  %while.1 = (s32[], bf16[1,128]{{1,0}}) while(%a), condition=%condition, body=%body, \
backend_config={{"known_trip_count":{{"n":"4"}}}}
  %reduce-scatter.1 = f32[16]{{0}} reduce-scatter(%while.1), channel_id=9, \
replica_groups={{{{0,1}},{{2,3}}}}, to_apply=%add
  %alone = f32[16]{{0}} all-reduce(%while.1), channel_id=10, replica_groups={{{{0}},{{1}}}}, to_apply=%add
  ROOT %copy = bf16[1,128]{{1,0}} copy(%a)
}}
"""


def test_each_collective_counts_once_and_loops_are_multiplied():
    found = {one.kind: one for one in collectives(MODULE)}
    assert len(collectives(MODULE)) == len(found) == 3
    gather = found["all-gather"]
    assert (gather.times, gather.num_devices, gather.result_bytes) == (4, 32, 32 * 128 * 2)
    assert gather.sent_bytes == 4 * 32 * 128 * 2 * 31 / 32
    reduce = found["all-reduce"]
    assert (reduce.times, reduce.num_devices) == (4, 8)
    assert reduce.sent_bytes == pytest.approx(4 * 64 * 4 * 2 * 7 / 8)
    assert found["reduce-scatter"].sent_bytes == 16 * 4


def test_what_hides_a_collective_runs_between_its_start_and_its_end():
    found = {one.kind: one for one in collectives(MODULE)}
    assert found["all-gather"].is_async
    assert found["all-gather"].hidden_cycles == 500
    assert not found["all-reduce"].is_async
    assert found["all-reduce"].hidden_cycles == 0
