"""The reader of the compiler's bundle listings, on a listing written by hand."""

import pytest

from alm_jax.bench.bundles import parse, read_listing

LISTING = """== CAPACTIY:
MATMUL, MATPUSH, XLU, VALU, VPOP, EUP, VLOAD, VLOAD:FILL, VSTORE, VSTORE:SPILL, SALU
    4     4     3     4     2     1     3     3     1     1     2
== UTILIZATION:
4 0 0 2 1 0 0 0 0 0 1
4 1 0 4 2 1 1 0 1 0 0
0 0 0 1 0 0 0 0 0 0 0
2 0 0 1 0 0 0 0 0 0 0
"""


def test_a_listing_is_counted():
    bundles = parse(LISTING)
    assert bundles.count == 4
    assert bundles.used["MATMUL"] == 10
    assert bundles.occupancy("VALU") == 8 / 16
    # Two matrices 128 wide on the four units of a v5e take two cycles of the four.
    assert bundles.efficiency(2 * 4 * 128 * 128, "TPU v5 lite") == 0.5
    assert bundles.efficiency(5 * 4 * 128 * 128, "TPU v5 lite") == 1.0


def test_the_listing_of_a_kernel_is_found_by_its_name(tmp_path):
    for name in ("17-contrastive_gradients.1", "17-TLP", "17-<late-finalization>"):
        (tmp_path / f"{name}-70-final_hlo-static-per-bundle-utilization.txt").write_text(LISTING)
        (tmp_path / f"{name}-67-pre-delay_hlo-static-per-bundle-utilization.txt").write_text("")
    assert read_listing(tmp_path, "contrastive_gradients").kernel == "contrastive_gradients.1"
    with pytest.raises(ValueError, match=r"has the kernels .*contrastive_gradients"):
        read_listing(tmp_path, "contrastive_statistics")


@pytest.mark.parametrize("text", ["", "HloModule jit_f\n\nENTRY", LISTING + "1 2 3\n"])
def test_another_text_is_refused(text):
    with pytest.raises(ValueError, match=r"no.*utilization per bundle"):
        parse(text)
