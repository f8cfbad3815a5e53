"""Manufacturers' figures of each kind of device: memory, peak speed, clock, bandwidths.

Peak speeds are those of dense bfloat16 products with float32 sums. Sources: cloud.google.com/tpu/docs (system
architecture of each TPU version), NVIDIA's data sheets of H100 SXM and H200 SXM. TPU clocks are the stated peak over
the FLOPs of one cycle of the matrix units (4 of 128 x 128 on v5e, 8 on v5p, 4 of 256 x 256 on v6e and on each core of
TPU7x). A link's bandwidth is the stated one of the chip's interconnect, over its links and both directions.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One device, as JAX counts devices (a TPU7x chip is two)."""

    hbm_bytes: int
    """Memory, bytes."""
    peak_flops: float
    """FLOPs per second, bfloat16."""
    clock_hz: float | None
    """Clock of the matrix units, which converts estimated cycles to time; None where no cycles are estimated."""
    hbm_bytes_per_s: float
    """Bandwidth of the memory, bytes per second."""
    link_bytes_per_s: float
    """Bandwidth one way, bytes per second: over one link to a neighbour (TPU), or over all links to the switch
    (GPU)."""
    num_links: int
    """Number of links to neighbours: two for each axis of the torus; 1 with a switch."""
    matrix_side: int = 128
    """Rows and columns of a matrix unit (TPU)."""
    num_cores: int = 1
    """Number of cores with their own vector units (TPU)."""


GIB = 2**30
CHIPS = {
    "TPU v4": Chip(
        hbm_bytes=32 * GIB,
        peak_flops=275e12,
        clock_hz=1.05e9,
        hbm_bytes_per_s=1.228e12,
        link_bytes_per_s=50e9,
        num_links=6,
        num_cores=2,
    ),
    "TPU v5 lite": Chip(
        hbm_bytes=16 * GIB,
        peak_flops=197e12,
        clock_hz=1.5e9,
        hbm_bytes_per_s=819e9,
        link_bytes_per_s=50e9,
        num_links=4,
    ),
    "TPU v5": Chip(
        hbm_bytes=95 * GIB,
        peak_flops=459e12,
        clock_hz=1.75e9,
        hbm_bytes_per_s=2.765e12,
        link_bytes_per_s=100e9,
        num_links=6,
        num_cores=2,
    ),
    "TPU v6 lite": Chip(
        hbm_bytes=32 * GIB,
        peak_flops=918e12,
        clock_hz=1.75e9,
        hbm_bytes_per_s=1.64e12,
        link_bytes_per_s=100e9,
        num_links=4,
        matrix_side=256,
    ),
    "TPU7x": Chip(
        hbm_bytes=96 * GIB,
        peak_flops=1153.5e12,
        clock_hz=2.2e9,
        hbm_bytes_per_s=3.69e12,
        link_bytes_per_s=100e9,
        num_links=6,
        matrix_side=256,
    ),
    "NVIDIA H100 80GB HBM3": Chip(
        hbm_bytes=80 * GIB,
        peak_flops=989e12,
        clock_hz=None,
        hbm_bytes_per_s=3.35e12,
        link_bytes_per_s=450e9,
        num_links=1,
    ),
    "NVIDIA H200": Chip(
        hbm_bytes=141 * 10**9,
        peak_flops=989e12,
        clock_hz=None,
        hbm_bytes_per_s=4.8e12,
        link_bytes_per_s=450e9,
        num_links=1,
    ),
}
"""Chips by ``device_kind``."""


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip of a ``jax.Device.device_kind``; None for a kind that is not in the table, such as a CPU."""
    return CHIPS.get(device_kind)
