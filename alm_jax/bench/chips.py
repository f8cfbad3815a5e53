"""What the makers state of each kind of device: memory, peak speed, clock.

Peak speeds are those of dense bfloat16 products with float32 sums. Sources: cloud.google.com/tpu/docs (system
architecture of each TPU version), NVIDIA's data sheets of H100 SXM and H200 SXM. TPU clocks are the stated peak over
the FLOPs of one cycle of the matrix units (4 of 128 x 128 on v5e, 8 on v5p, 4 of 256 x 256 on v6e and on each core of
TPU7x).
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One device, as JAX counts devices (a TPU7x chip is two)."""

    hbm_bytes: int
    """Its memory."""
    peak_flops: float
    """FLOPs per second, bfloat16."""
    clock_hz: float | None
    """Clock of the matrix units, to turn estimated cycles into estimated time; None where no cycles are estimated."""


GIB = 2**30
CHIPS = {
    "TPU v4": Chip(hbm_bytes=32 * GIB, peak_flops=275e12, clock_hz=1.05e9),
    "TPU v5 lite": Chip(hbm_bytes=16 * GIB, peak_flops=197e12, clock_hz=1.5e9),
    "TPU v5": Chip(hbm_bytes=95 * GIB, peak_flops=459e12, clock_hz=1.75e9),
    "TPU v6 lite": Chip(hbm_bytes=32 * GIB, peak_flops=918e12, clock_hz=1.75e9),
    "TPU7x": Chip(hbm_bytes=96 * GIB, peak_flops=1153.5e12, clock_hz=2.2e9),
    "NVIDIA H100 80GB HBM3": Chip(hbm_bytes=80 * GIB, peak_flops=989e12, clock_hz=None),
    "NVIDIA H200": Chip(hbm_bytes=141 * 10**9, peak_flops=989e12, clock_hz=None),
}
"""By ``device_kind``."""


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a ``jax.Device.device_kind``; None of a kind that is not in the table, a CPU above all."""
    return CHIPS.get(device_kind)
