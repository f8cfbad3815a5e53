"""Memory that a compiled program needs on a device, as the compiler states it."""

import dataclasses
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    temp_bytes: int
    """Scratch: neither inputs nor outputs."""
    peak_bytes: int
    """Peak: the most that is alive at any time, inputs and outputs included."""
    argument_bytes: int
    """Size of the inputs."""
    output_bytes: int
    """Size of the outputs, including those that reuse an input's memory."""
    alias_bytes: int
    """Size of the outputs that reuse an input's memory."""


def memory_of(compiled: Any) -> Memory:
    """Returns the memory of ``jitted.lower(...).compile()``, per device.

    XLA:CPU's peak leaves the scratch out, so there the peak is the sum of all, an upper bound.
    """
    stats = compiled.memory_analysis()
    whole = (
        stats.temp_size_in_bytes
        + stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
    )
    # Not those of the inputs: a program may have more of them than its function (LTU-7B's step), for which JAX raises.
    devices = next(iter(jax.tree.leaves(compiled.output_shardings))).device_set
    is_cpu = next(iter(devices)).platform == "cpu"
    return Memory(
        temp_bytes=stats.temp_size_in_bytes,
        peak_bytes=whole if is_cpu else stats.peak_memory_in_bytes,
        argument_bytes=stats.argument_size_in_bytes,
        output_bytes=stats.output_size_in_bytes,
        alias_bytes=stats.alias_size_in_bytes,
    )
