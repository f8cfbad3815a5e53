"""Options of XLA and libtpu for training steps, by device generation, that overlap communication with computation.

They enable XLA's latency-hiding scheduler and asynchronous collectives. The names are those that MaxText gives libtpu
for large models (https://github.com/AI-Hypercomputer/maxtext); tests/bench/test_topology.py checks them against the
compiler.
"""

from collections.abc import Mapping
from typing import Literal, TypeAlias

Preset: TypeAlias = Literal["default", "overlap"]
"""``default``: the compiler's own choices. ``overlap``: the options of `OVERLAP` for the device kind; none on other
kinds."""

_TPU = {
    "xla_tpu_enable_latency_hiding_scheduler": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
    "xla_enable_async_all_gather": "true",
}
_V5E = {
    **_TPU,
    # libtpu refuses these together on v5p and v6e.
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
}
_GPU = {"xla_gpu_enable_latency_hiding_scheduler": True}
OVERLAP: Mapping[str, Mapping[str, str | bool]] = {
    "TPU v4": _TPU,
    "TPU v5 lite": _V5E,
    "TPU v5": _TPU,
    "TPU v6 lite": _TPU,
    "TPU7x": _TPU,
    "NVIDIA H100 80GB HBM3": _GPU,
    "NVIDIA H200": _GPU,
}
"""Options by ``device_kind``."""


def compiler_options(preset: Preset, device_kind: str) -> dict[str, str | bool]:
    """Returns the options of a preset for a device kind; empty where it has none."""
    return dict(OVERLAP.get(device_kind, {})) if preset == "overlap" else {}
