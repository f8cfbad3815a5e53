"""Utilisation of a TPU's matrix units by a Pallas kernel, from the compiler's final instruction bundles.

A TPU core issues at most one bundle a cycle, and the compiler schedules all of them: the listing of a kernel gives,
without the device, the cycles of its body when nothing stalls. It does not show stalls: memory traffic must be hidden
behind the products, which is a matter of arithmetic (bytes a tile over bandwidth).

    python -m alm_jax.bench.bundles v5e:2x2 --kernel statistics --dim 512

prints the bundles of one contrastive kernel, a tile of its pairs, beside the cycles that the matrix units need at
least. All bundles are counted as if they ran for every tile, also those that only the first or the last tile of a row
needs: the efficiency is a lower bound of the listing's.
"""

import argparse
import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

MACS_PER_CYCLE = {
    "TPU v5 lite": 4 * 128 * 128,
    "TPU v5": 4 * 128 * 128,
    "TPU v6 lite": 4 * 256 * 256,
    "TPU7x": 4 * 256 * 256,
}
"""Multiply-accumulates of bfloat16 that one core does in a cycle, by ``device_kind``: peak over clock (chips.py)."""

LISTING = re.compile(r"-(?P<kernel>[\w.<>-]+?)-\d+-final_hlo-static-per-bundle-utilization\.txt$")


@dataclasses.dataclass(frozen=True)
class Bundles:
    """The schedule of one kernel."""

    kernel: str
    """Name of the kernel in the program."""
    count: int
    """Number of bundles: cycles of one pass through the body."""
    capacity: Mapping[str, int]
    """Slots of a bundle, by kind: MATMUL, VALU, EUP, ..."""
    used: Mapping[str, int]
    """Slots in use over all bundles; a MATMUL slot is in use as long as a matrix unit is busy."""

    def occupancy(self, slot: str) -> float:
        """Fraction of a kind of slots that is in use."""
        return self.used[slot] / (self.capacity[slot] * self.count)

    def efficiency(self, macs: int, device_kind: str) -> float:
        """Least cycles of ``macs`` multiply-accumulates of bfloat16, divided by the cycles of the schedule.

        A schedule may issue faster than the matrix units can follow, and the hardware then waits: at most 1.
        """
        return min(1.0, macs / MACS_PER_CYCLE[device_kind] / self.count)


def parse(text: str, kernel: str = "") -> Bundles:
    """Parses the bundles of a ``*-final_hlo-static-per-bundle-utilization.txt``: a header, then a line a bundle.

    Raises ValueError where the text is no such listing.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        names = [name.strip() for name in lines[1].split(",")]
        capacity = [int(number) for number in lines[2].split()]
        rows = [[int(number) for number in line.split()] for line in lines[4:]]
        used = [sum(column) for column in zip(*rows, strict=True)]
        return Bundles(
            kernel,
            len(rows),
            dict(zip(names, capacity, strict=True)),
            dict(zip(names, used, strict=True)),
        )
    except (IndexError, ValueError) as error:
        raise ValueError(
            "this is not libtpu's utilization per bundle: expected names of slots on line 2, their capacity on line 3, "
            f"and a line of as many numbers for every bundle from line 5 on ({error})"
        ) from error


def read_listing(folder: Path, kernel: str) -> Bundles:
    """Reads the bundles of the kernel whose name in the program starts with ``kernel``, from the dump in ``folder``.

    Raises ValueError where the dump has none, or more than one.
    """
    found = {
        match["kernel"]: path for path in sorted(folder.iterdir()) if (match := LISTING.search(path.name))
    }
    names = [name for name in found if name.startswith(kernel)]
    if len(names) != 1:
        raise ValueError(
            f"the dump has the kernels {sorted(found)}, of which {len(names)} start with {kernel!r} and one should: "
            "was libtpu loaded before LIBTPU_INIT_ARGS was set?"
        )
    return parse(found[names[0]].read_text(), names[0])


def dump_options(folder: Path) -> str:
    """``LIBTPU_INIT_ARGS`` with which the compiler writes its listings to ``folder``; libtpu reads it when it is
    loaded.

    A small kernel writes about 50 MB: compile nothing else in that process.
    """
    return f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"


def main() -> None:
    """Compiles one contrastive kernel for an absent TPU and prints a line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m alm_jax.bench.bundles", description=main.__doc__)
    parser.add_argument("topology", help="v5e:2x2, v5p:2x2x1, v6e:2x2 or tpu7x:2x2x1")
    parser.add_argument("--kernel", choices=("statistics", "gradients"), default="statistics")
    parser.add_argument("--dim", type=int, default=512, help="size of the embeddings (default 512)")
    parser.add_argument("--dtype", default="bfloat16", help="of the embeddings (default bfloat16)")
    parser.add_argument("--rows", type=int, default=4096, help="of the block of pairs (default 4096)")
    parser.add_argument("--cols", type=int, default=8192, help="of the block of pairs (default 8192)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIBTPU_INIT_ARGS"] = dump_options(Path(folder))
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        # JAX starts here, not before.
        from alm_jax.bench.contrastive_kernel import compile_kernel

        tiling, device_kind = compile_kernel(
            options.topology, options.kernel, options.dim, options.dtype, options.rows, options.cols
        )
        bundles = read_listing(Path(folder), f"contrastive_{options.kernel}")
    macs = tiling.rows * tiling.cols * options.dim * {"statistics": 1, "gradients": 3}[options.kernel]
    report = {
        "kernel": options.kernel,
        "device_kind": device_kind,
        "dtype": options.dtype,
        "dim": options.dim,
        "tile": [tiling.rows, tiling.cols, tiling.chunk],
        "bundles": bundles.count,
        "bound": round(macs / MACS_PER_CYCLE[device_kind]),
        "efficiency": round(bundles.efficiency(macs, device_kind), 3),
        "occupancy": {name: round(bundles.occupancy(name), 3) for name in bundles.capacity},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
