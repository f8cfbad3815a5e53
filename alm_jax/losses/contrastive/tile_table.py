"""Which tiles the TPU kernels run with: a table by generation, dtype and embedding size, and what each takes of VMEM.

A tile of the pair matrix is ``rows`` by ``cols``; the products of a tile run in chunks of ``chunk`` columns, so
that the vector units work on one chunk while the matrix units work on the next. Beside the tiles on the way, a
kernel keeps the accumulators of all its columns in VMEM: ``VMEM_SHARE`` of it, then the columns are cut into
groups, and the kernel runs once a group.

The tiles were chosen by the compiler's bundle listings (docs/performance/contrastive_kernel.md); the test of this
table compiles every entry for its generation.
"""

import dataclasses
from typing import Literal

LANES = 128
"""Width of a vector register: rows, columns and chunks are multiples of it."""
SUBLANES = 8
VMEM_SHARE = 0.85
"""Fraction of a generation's VMEM that a kernel may use; the compiler needs the rest."""

MOST_TALLER = 4
"""Factor by which the tiles of a narrow block may be higher than in the table."""

Kernel = Literal["statistics", "gradients"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """Properties of a TPU that the kernels need."""

    name: str
    """Generation, as in the table."""
    vmem_bytes: int
    """VMEM of one core, bytes."""
    num_cores: int
    """Cores behind one JAX device; a kernel's rows are spread over them."""


MIB = 2**20
GENERATIONS = {
    "TPU v5 lite": Generation(name="v5e", vmem_bytes=128 * MIB, num_cores=1),
    "TPU v5": Generation(name="v5p", vmem_bytes=64 * MIB, num_cores=2),
    "TPU v6 lite": Generation(name="v6e", vmem_bytes=128 * MIB, num_cores=1),
    "TPU7x": Generation(name="tpu7x", vmem_bytes=64 * MIB, num_cores=1),
}
"""Properties by ``device_kind``. Sizes: jax.experimental.pallas.tpu's own table of TPU generations."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """The largest tile of a kernel; a smaller block of pairs gets a smaller one."""

    rows: int
    cols: int
    chunk: int


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of the table."""

    statistics: Tile
    gradients: Tile

    def tile(self, kernel: Kernel) -> Tile:
        """The tile of one of the two kernels."""
        return self.statistics if kernel == "statistics" else self.gradients


BFLOAT16 = {
    # generation: up to 512 wide, and wider, where the products of a tile are as long in half the columns.
    "v5e": (
        Entry(Tile(512, 2048, 512), Tile(512, 1024, 512)),
        Entry(Tile(512, 1024, 512), Tile(512, 512, 512)),
    ),
    "v5p": (
        Entry(Tile(512, 2048, 512), Tile(512, 1024, 512)),
        Entry(Tile(512, 1024, 512), Tile(512, 512, 512)),
    ),
    "v6e": (
        Entry(Tile(512, 2048, 512), Tile(1024, 1024, 512)),
        Entry(Tile(512, 1024, 512), Tile(1024, 512, 512)),
    ),
    "tpu7x": (
        Entry(Tile(1024, 2048, 512), Tile(1024, 1024, 512)),
        Entry(Tile(1024, 1024, 512), Tile(1024, 512, 512)),
    ),
}
FLOAT32 = Entry(Tile(256, 512, 256), Tile(256, 256, 256))
"""Every product takes several passes through the matrix units: small tiles are as good, and compile sooner."""

WIDTHS = (128, 256, 384, 512, 640, 768, 1024)
TABLE: dict[tuple[str, str, int], Entry] = {
    (name, dtype, width): FLOAT32 if dtype == "float32" else BFLOAT16[name][width > 512]
    for name in BFLOAT16
    for dtype in ("bfloat16", "float32")
    for width in WIDTHS
}
"""Tiles by (generation, dtype of the embeddings, E)."""


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a kernel runs over a block of r by c pairs, padded to whole tiles."""

    rows: int
    """Rows of a tile."""
    cols: int
    """Columns of a tile."""
    chunk: int
    """Columns of a product; divides ``cols``."""
    num_cores: int
    """Number of cores; each has ``row_tiles`` of its own."""
    row_tiles: int
    """Number of tiles down a core's rows."""
    col_tiles: int
    """Number of tiles along a group of columns."""
    num_groups: int
    """Number of groups of columns."""
    vmem_bytes: int
    """VMEM of a core that the kernel may use, bytes."""

    @property
    def num_rows(self) -> int:
        """r, padded."""
        return self.num_cores * self.row_tiles * self.rows

    @property
    def num_cols(self) -> int:
        """c, padded."""
        return self.num_groups * self.col_tiles * self.cols


def find_tiling(
    kernel: Kernel, generation: Generation, dtype: str, width: int, num_rows: int, num_cols: int
) -> Tiling | None:
    """Chooses the tiling of a block of ``num_rows`` by ``num_cols`` pairs of embeddings ``width`` wide.

    None where the table has no entry, or where not even one tile of it fits the VMEM of the generation.
    """
    entry = TABLE.get((generation.name, dtype, width))
    if entry is None:
        return None
    return fit_tiling(kernel, entry.tile(kernel), generation, dtype, width, num_rows, num_cols)


def fit_tiling(
    kernel: Kernel,
    tile: Tile,
    generation: Generation,
    dtype: str,
    width: int,
    num_rows: int,
    num_cols: int,
) -> Tiling | None:
    """Returns the most even tiling by tiles of at most about ``tile``; None where one tile does not fit the VMEM."""
    cores = generation.num_cores
    col_tiles = divide_up(num_cols, tile.cols)
    cols = round_up(divide_up(num_cols, col_tiles))
    most_rows = tile.rows
    if kernel == "statistics":
        # The start and the end of a tile weigh as much in a narrow one, which is a piece of a ring: make it taller.
        most_rows *= min(MOST_TALLER, tile.cols // cols)
    row_tiles = divide_up(num_rows, most_rows * cores)
    rows = round_up(divide_up(num_rows, row_tiles * cores))
    chunk = max(n for n in range(LANES, min(tile.chunk, cols) + 1, LANES) if cols % n == 0)
    budget = int(VMEM_SHARE * generation.vmem_bytes)

    def takes(group_tiles: int) -> int:
        tiling = Tiling(rows, cols, chunk, cores, row_tiles, group_tiles, 1, budget)
        return vmem_bytes(kernel, tiling, dtype, width)

    spare = budget - takes(0)
    most = spare // (takes(1) - takes(0))
    if most < 1:
        return None
    num_groups = divide_up(col_tiles, most)
    group_tiles = divide_up(col_tiles, num_groups)
    cols = round_up(divide_up(num_cols, group_tiles * num_groups))
    chunk = max(n for n in range(LANES, min(tile.chunk, cols) + 1, LANES) if cols % n == 0)
    return Tiling(rows, cols, chunk, cores, row_tiles, group_tiles, num_groups, budget)


def vmem_bytes(kernel: Kernel, tiling: Tiling, dtype: str, width: int) -> int:
    """Upper estimate of the VMEM of a kernel: its windows (two buffers each), accumulators and temporaries."""
    size = 2 if dtype == "bfloat16" else 4
    rows, cols, chunk = tiling.rows, tiling.cols, tiling.chunk
    group = tiling.col_tiles * cols
    windows = 2 * size * width * (rows + cols)
    # Rows of numbers [1, n] lie in whole registers of 8; every kernel has at most four a side.
    windows += 2 * 4 * 4 * SUBLANES * (rows + cols)
    if dtype == "float32":
        # The bfloat16 parts that the factors of a float32 product are split into, and what is spilled of them.
        windows += 8 * width * (rows + cols)
    logits = 4 * rows * chunk
    if kernel == "statistics":
        # Peaks, totals and the padding of the rows, one number a lane; peaks and totals of the columns, one a sublane.
        scratch = 3 * 4 * LANES * rows + 2 * 4 * SUBLANES * group
        return windows + scratch + 3 * logits
    # Gradients in and out, both sides; log-sum-exps and ids of the rows, one number a lane; all columns' gradients.
    windows += 2 * 2 * 4 * width * (rows + cols)
    scratch = 2 * 4 * LANES * rows + 4 * width * group
    return windows + scratch + 3 * logits + 4 * width * (rows + chunk)


def divide_up(a: int, b: int) -> int:
    """Returns the quotient, rounded up."""
    return -(-a // b)


def round_up(n: int) -> int:
    """Rounds ``n`` up to whole registers."""
    return divide_up(n, LANES) * LANES
