"""Settings that JAX reads when it starts its devices: the platform, and the number of simulated devices.

A benchmark sets them before anything uses a device.
"""

import contextlib
import os

import jax

from alm_jax.bench.topology import Topology, resolve


def prepare_jax(topology: str | None, num_devices: int, *, with_peers: bool) -> Topology | None:
    """Starts JAX on the right platform. Returns the topology of absent devices, or None."""
    if topology is not None:
        # The compiler needs no device, and JAX must not look for one; a process that has started JAX keeps its
        # devices.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_platforms", "cpu")
    if with_peers:
        # JAX and PyTorch share the card's memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if num_devices > 1:
        # Simulated devices, where there are no others.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", num_devices)
    return None if topology is None else resolve(topology)
