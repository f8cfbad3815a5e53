"""Compiles for absent devices: TPU slices by libtpu, H100 and H200 by JAX's CUDA plugin.

The compilers are the real ones: they place every buffer, reject what does not fit, and write their schedule. Only a
measurement of speed needs the device. A name is a kind and a shape:

    v5e:16x16   v5e:2x4   v5p:4x4x4   v6e:16x16   v4:4x4x4   tpu7x:2x2x1        (libtpu, x86 Linux: extra `aot`)
    v5e:16x16*4                                                                 (four such slices: mesh.num_slices 4)
    h100:8      h200:8                                                          (extra `cuda`)
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from alm_jax.bench.chips import Chip, chip_of
from alm_jax.bench.memory import Memory, memory_of
from alm_jax.errors import UserError
from alm_jax.training.mesh import MeshConfig, build_mesh

ACCELERATORS = {
    "v4": "v4-128",
    "v5e": "v5litepod-16",
    "v5p": "v5p-128",
    "v6e": "v6e-16",
    "tpu7x": "tpu7x-8",
}
"""TPU kinds, with a machine type that keeps libtpu from querying the network for one."""
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # libtpu refuses to run in two processes, since only one could hold the chips; here there are none.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
CUDA_OPTIONS = {"xla_gpu_autotune_level": "0"}
"""Disables autotuning, which times candidates on a card."""
HOPPER = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: %(bandwidth)d l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: %(memory)d shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 12 } runtime_version { major: 13 minor: 0 }
device_description_str: "%(name)s"
"""
"""XLA's description of a Hopper card, as a card would report it."""
CARDS = {
    "h100": HOPPER % {"bandwidth": 3352320000000, "memory": 84929347584, "name": "NVIDIA H100 80GB HBM3"},
    "h200": HOPPER % {"bandwidth": 4800000000000, "memory": 150000000000, "name": "NVIDIA H200"},
}


DEVICE_KINDS = {
    "v4": "TPU v4",
    "v5e": "TPU v5 lite",
    "v5p": "TPU v5",
    "v6e": "TPU v6 lite",
    "tpu7x": "TPU7x",
    "h100": "NVIDIA H100 80GB HBM3",
    "h200": "NVIDIA H200",
}
"""JAX's name of the devices of each kind."""
DEVICES_PER_CHIP = {"tpu7x": 2}
"""Devices per chip, for kinds whose chips are several devices."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for."""

    name: str
    """Name of the topology, as requested."""
    devices: tuple[Any, ...]
    """Compile-only devices; they cannot hold arrays."""
    chip: Chip
    """JAX's name of the kind of device."""

    @property
    def platform(self) -> str:
        """Platform: ``tpu`` or ``cuda``."""
        return "tpu" if self.name.partition(":")[0] in ACCELERATORS else "cuda"

    def mesh(self, config: MeshConfig | None = None) -> Mesh:
        """Makes the project's mesh over these devices; by default all of them along ``data``."""
        return build_mesh(config or MeshConfig(), self.devices)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Result of compiling a program, or the reason why there is none."""

    executable: Any
    """The compiled program, for its text and analyses; None where it failed."""
    memory: Memory | None
    """Memory per device; None where it failed."""
    fits: bool | None
    """Whether it fits the device; None where another error hides that, or the limit is not known."""
    error: str | None
    """The compiler's message, on one line."""
    seconds: float
    """Time that the compiler took, seconds."""

    @property
    def text(self) -> str | None:
        """The optimised HLO."""
        return self.executable.as_text() if self.executable is not None else None


def read_name(name: str) -> tuple[int, Chip]:
    """Number and kind of a topology's devices, from its name: no compiler is needed.

    Raises UserError for an unknown kind or an invalid shape.
    """
    kind, _, shape = name.partition(":")
    if kind not in DEVICE_KINDS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*(\*[1-9]\d*)?", shape):
        raise UserError(_unknown(name))
    shape, _, slices = shape.partition("*")
    count = math.prod(map(int, shape.split("x"))) * int(slices or 1) * DEVICES_PER_CHIP.get(kind, 1)
    chip = chip_of(DEVICE_KINDS[kind])
    assert chip is not None, f"{DEVICE_KINDS[kind]} is not in chips.py"
    return count, chip


def _unknown(name: str) -> str:
    return (
        f"there is no topology {name!r}: it is KIND:SHAPE, such as v5e:16x16, v5p:4x4x4 or h100:8, and KIND is one of "
        f"{', '.join(DEVICE_KINDS)}"
    )


def resolve(name: str) -> Topology:
    """Makes the topology of that name.

    Raises UserError where the kind or the shape is unknown, or its compiler is not installed.
    """
    read_name(name)
    kind, _, shape = name.partition(":")
    devices = _tpu_devices(name, kind) if kind in ACCELERATORS else _cuda_devices(name, kind, shape)
    chip = chip_of(devices[0].device_kind)
    assert chip is not None, f"{devices[0].device_kind} is not in chips.py"
    return Topology(name, tuple(devices), chip)


def _tpu_devices(name: str, kind: str) -> Sequence[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"compiling for {name} takes libtpu, which is not installed; `pip install 'alm_jax[aot]'` brings it "
            "(x86-64 Linux only)"
        )
    # libtpu reads these when it is loaded, which the first call below does.
    for key, value in TPU_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", ACCELERATORS[kind])
    one, _, slices = name.partition("*")
    extra: dict[str, Any] = {"num_slices": int(slices)} if slices else {}
    if kind == "v4":
        # One device a chip, as on a real slice.
        extra |= {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=one, **extra).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"libtpu knows no topology {name!r} ({_one_line(error)}): the shape is that of a slice, such as v5e:2x4, "
            "v5e:16x16, v5p:2x2x1, v6e:16x16 or tpu7x:2x2x1"
        ) from error


def _cuda_devices(name: str, kind: str, shape: str) -> Sequence[Any]:
    if not re.fullmatch(r"[1-9]\d*", shape):
        raise UserError(f"topology {name!r} is not KIND:COUNT; {kind}:8 is one machine of eight cards")
    try:
        return topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=CARDS[kind], topology=f"1x{shape}x1"
        ).devices
    except (NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"compiling for {name} takes JAX's CUDA plugin and its libraries, which cannot be used here "
            f"({_one_line(error)}); `pip install 'alm_jax[cuda]'` brings them, no card is needed"
        ) from error


def compile_for(lowered: Any, topology: Topology) -> Compiled:
    """Compiles ``jax.jit(f, in_shardings=...).lower(...)``, whose shardings are on ``topology``'s mesh.

    A program that does not fit, or cannot be compiled, gives a result and not an exception.
    """
    options = CUDA_OPTIONS if topology.platform == "cuda" else None
    start = time.perf_counter()
    try:
        with _without_cache():
            executable = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        message = _one_line(error)
        fits = False if "RESOURCE_EXHAUSTED" in message and "HBM" in message.upper() else None
        return Compiled(None, None, fits, message, time.perf_counter() - start)
    memory = memory_of(executable)
    fits = memory.peak_bytes <= topology.chip.hbm_bytes
    return Compiled(executable, memory, fits, None, time.perf_counter() - start)


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """Disables the cache of compiled programs on disk: a program for absent devices would be written there and could
    not be read again."""
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."
