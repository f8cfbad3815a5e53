"""What a compiled program needs of a device's memory, as the compiler says; and what a process did use."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    temp_bytes: int
    """Scratch: neither inputs nor outputs."""
    peak_bytes: int
    """The most that is alive at any time, inputs and outputs included."""
    argument_bytes: int
    """Inputs."""
    output_bytes: int
    """Outputs, those that reuse an input's memory included."""
    alias_bytes: int
    """Outputs that reuse an input's memory."""


def memory_of(compiled: Any) -> Memory:
    """The memory of ``jitted.lower(...).compile()``, per device.

    A compiler that states no peak gets the sum of all, an upper bound.
    """
    stats = compiled.memory_analysis()
    total = (
        stats.temp_size_in_bytes
        + stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
    )
    return Memory(
        temp_bytes=stats.temp_size_in_bytes,
        peak_bytes=getattr(stats, "peak_memory_in_bytes", 0) or total,
        argument_bytes=stats.argument_size_in_bytes,
        output_bytes=stats.output_size_in_bytes,
        alias_bytes=stats.alias_size_in_bytes,
    )
