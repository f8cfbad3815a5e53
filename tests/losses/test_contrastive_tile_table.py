"""The table of tiles: every tiling covers its block, and none is larger than the VMEM."""

import pytest

from alm_jax.losses.contrastive.tile_table import (
    GENERATIONS,
    LANES,
    MOST_TALLER,
    TABLE,
    VMEM_SHARE,
    Tile,
    find_tiling,
    fit_tiling,
    vmem_bytes,
)

V5E, V5P = GENERATIONS["TPU v5 lite"], GENERATIONS["TPU v5"]
SIZES = [(1, 1), (129, 5000), (8192, 512), (4096, 8192), (300_000, 1_500_000)]


@pytest.mark.parametrize("kernel", ["statistics", "gradients"])
@pytest.mark.parametrize("size", SIZES)
def test_every_tiling_covers_its_block_and_fits(size, kernel):
    for (name, dtype, width), entry in TABLE.items():
        generation = next(g for g in GENERATIONS.values() if g.name == name)
        tiling = find_tiling(kernel, generation, dtype, width, *size)
        assert tiling is not None, (name, dtype, width)
        most = entry.tile(kernel)
        assert tiling.cols <= most.cols
        assert tiling.rows * tiling.cols <= most.rows * most.cols
        assert tiling.rows <= (MOST_TALLER if kernel == "statistics" else 1) * most.rows
        for given, filled, tile in (
            (size[0], tiling.num_rows, tiling.rows),
            (size[1], tiling.num_cols, tiling.cols),
        ):
            assert tile % LANES == 0
            # Less than a register of each tile is filled up.
            assert given <= filled < given + filled // tile * LANES
        assert tiling.cols % tiling.chunk == 0
        assert vmem_bytes(kernel, tiling, dtype, width) <= VMEM_SHARE * generation.vmem_bytes


def test_columns_are_cut_into_groups_where_their_gradients_outgrow_the_vmem():
    def groups(num_cols: int) -> int:
        tiling = find_tiling("gradients", V5E, "bfloat16", 512, 4096, num_cols)
        assert tiling is not None
        return tiling.num_groups

    # 4 bytes x 512 a column: 16 MiB, and twice the VMEM.
    assert groups(8192) == 1
    assert groups(131072) > 2


@pytest.mark.parametrize("kernel", ["statistics", "gradients"])
def test_a_tile_larger_than_the_vmem_is_refused(kernel):
    assert fit_tiling(kernel, Tile(8192, 8192, 8192), V5E, "bfloat16", 512, 16384, 262144) is None
    assert find_tiling(kernel, V5E, "bfloat16", 500, 4096, 4096) is None


def test_the_rows_are_spread_over_the_cores():
    tiling = find_tiling("statistics", V5P, "bfloat16", 512, 4096, 4096)
    assert tiling is not None
    assert (tiling.num_cores, tiling.row_tiles * tiling.rows) == (2, 2048)
