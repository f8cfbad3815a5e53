"""The reader of compiled programs, on what libtpu printed of a splash kernel, forward and backward, for a v5e."""

import re
from pathlib import Path

import pytest

from alm_jax.bench.cycles import estimate_cycles
from alm_jax.bench.hlo import parse

SPLASH = Path(__file__).with_name("splash_v5e.hlo.txt").read_text()


def test_what_follows_a_kernel_is_read():
    """A kernel's call prints its metadata on lines of their own, one of which begins as the end of a computation."""
    module = parse(SPLASH)
    lines = module.computations[module.entry]
    printed = SPLASH[SPLASH.index("\nENTRY") :]
    assert [line.name for line in lines] == re.findall(
        r"^  (?:ROOT )?%([\w.\-]+) = ", printed, flags=re.MULTILINE
    )
    assert lines[-1].opcode == "tuple"
    estimates = [int(number) for number in re.findall(r'"estimated_cycles":"(\d+)"', printed)]
    assert len(estimates) > 10
    assert estimate_cycles(SPLASH).total == sum(estimates)


def test_the_whole_text_of_a_kernel_is_its_own():
    module = parse(SPLASH)
    forward, backward = (line for line in module.computations[module.entry] if "tpu_custom_call" in line.text)
    assert forward.opcode == "custom-call"
    assert forward.operands == ("constant.10", "constant.11", "fusion", "bitcast.24", "bitcast.26")
    assert len(backward.operands) == 8
    assert forward.op_name.endswith("splash_mha_fwd_residuals/pallas_call")
    assert "xprof_metadata" in forward.text


def test_a_module_that_is_cut_off_is_refused():
    with pytest.raises(ValueError, match="ends inside of its computation"):
        parse(SPLASH[: SPLASH.index("ROOT %tuple.7")])
