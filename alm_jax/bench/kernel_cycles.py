"""Cycles of the contrastive kernels in a program for a TPU: the bundles that the compiler scheduled, times tiles.

XLA's cycle estimates (``cycles``) leave the inside of a Pallas kernel out. libtpu schedules it all the same, and
``bundles`` counts a body's instruction bundles, one a cycle where nothing stalls. So these cycles are an estimate as
XLA's are, and like them they know nothing of memory that keeps the units waiting.
"""

import functools
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from alm_jax.bench.counting import KernelCall

PREFIX = "contrastive_"
AUDIO, TEXT = 2, 3
"""Where the embeddings are among a kernel's inputs, behind the group of columns and the scale."""
TIMEOUT_SEC = 900


def kernel_cycles(kernels: Mapping[KernelCall, int], topology: str) -> int | None:
    """Cycles of one device in all calls of ``kernels`` (``Counts.kernels``); None where one has no listing.

    Every tile is taken to run all bundles of its kernel, those too that only the first or the last tile of a row
    needs. Compiles each kernel once, in a process of its own.

    Raises RuntimeError where the compiler refuses a kernel, or cuts it into other tiles than the program does.
    """
    if not all(call.name.startswith(PREFIX) for call in kernels):
        return None
    return sum(times * _call_cycles(call, topology) for call, times in kernels.items())


def _call_cycles(call: KernelCall, topology: str) -> int:
    (dtype, (rows, dim)), (_, (cols, _)) = call.inputs[AUDIO], call.inputs[TEXT]
    listed = listing(topology, call.name.removeprefix(PREFIX), dim, dtype, rows, cols)
    tile_rows, tile_cols, _ = listed["tile"]
    cores, row_tiles, col_tiles = call.grid
    # Columns that outgrow the VMEM are cut into groups, each a call.
    if cores * row_tiles * tile_rows != rows or cols % (col_tiles * tile_cols):
        raise RuntimeError(
            f"{call.name} runs over {rows} x {cols} pairs in a grid of {call.grid}, and its listing is of tiles of "
            f"{tile_rows} x {tile_cols}: they do not belong together"
        )
    return int(listed["bundles"]) * math.prod(call.grid[1:])


@functools.cache
def listing(topology: str, kernel: str, dim: int, dtype: str, rows: int, cols: int) -> Mapping[str, Any]:
    """What ``python -m alm_jax.bench.bundles`` reports of a kernel.

    libtpu takes the order to write listings when it is loaded, hence the process. Raises RuntimeError where it fails.
    """
    options = {"kernel": kernel, "dim": dim, "dtype": dtype, "rows": rows, "cols": cols}
    command = [sys.executable, "-m", "alm_jax.bench.bundles", topology]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_SEC, env=dict(os.environ), check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
