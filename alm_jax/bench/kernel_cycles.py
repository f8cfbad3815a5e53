"""Cycles of the Pallas kernels in a program for a TPU: the bundles that the compiler scheduled, times grid steps.

XLA's cycle estimates (``cycles``) leave the inside of a Pallas kernel out. libtpu schedules it all the same, and
``bundles`` counts a body's instruction bundles, one a cycle where nothing stalls. So these cycles are an estimate
like XLA's, and like those they ignore waiting for memory.

    python -m alm_jax.bench.kernel_cycles v5e:2x2 kernel.bin

compiles one kernel, as `jax.export` serialises it, and prints its bundles as a line of JSON. `kernel_cycles` runs
this in a process of its own for each kernel, since libtpu reads the option to write listings when it is loaded.
"""

import argparse
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from alm_jax.bench.bundles import dump_options, read_listing
from alm_jax.bench.counting import KernelCall

TIMEOUT_SEC = 900
SMALLEST = {"v4": "v4:2x2x1", "v5e": "v5e:1x1", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
"""Topology that a kernel, which runs on one device, is compiled for, by device kind."""
CORES = {"v4": 2, "v5p": 2}
"""Number of cores by device kind, for kinds with several cores, which share a parallel axis of the grid."""


def kernel_cycles(kernels: Mapping[KernelCall, int], topology: str) -> int:
    """Cycles of one device in all calls of ``kernels`` (``Counts.kernels``).

    Every step of the grid is taken to run all bundles of its kernel, those too that only the first or the last step of
    a row needs, or that a causal mask skips. Compiles each kernel once.

    Raises RuntimeError where the compiler refuses a kernel.
    """
    return sum(times * call_cycles(call, topology) for call, times in kernels.items())


def call_cycles(call: KernelCall, topology: str) -> int:
    """Returns the cycles of one device in one call of a kernel; see `kernel_cycles`."""
    kind = topology.partition(":")[0]
    semantics = getattr(call.equation.params["compiler_params"], "dimension_semantics", None) or ()
    # An axis that `vmap` added stands first and has none.
    named = zip(reversed(call.grid), reversed(semantics), strict=False)
    parallel = math.prod(size for size, name in named if str(name).lower() == "parallel")
    return _bundles(call, kind) * math.prod(call.grid) // math.gcd(parallel, CORES.get(kind, 1))


@functools.cache
def _bundles(call: KernelCall, kind: str) -> int:
    """Counts the bundles of a kernel's body, by libtpu in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "kernel.bin"
        program.write_bytes(serialize_kernel(call))
        command = [sys.executable, "-m", "alm_jax.bench.kernel_cycles", SMALLEST[kind], str(program)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SEC, env=dict(os.environ), check=False
        )
    if done.returncode:
        raise RuntimeError(f"the kernel {call.name!r} does not compile alone: {done.stderr.strip()[-300:]}")
    return int(json.loads(done.stdout.strip().splitlines()[-1])["bundles"])


def serialize_kernel(call: KernelCall) -> bytes:
    """Makes a program of that one call, for TPUs."""
    import jax
    from jax import export

    equation = call.equation

    # The listing is called by this function's name.
    def alone(*arrays: jax.Array) -> list[jax.Array]:
        return equation.primitive.bind(*arrays, **equation.params)

    inputs = [jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype) for x in equation.invars]
    return bytes(export.export(jax.jit(alone), platforms=["tpu"])(*inputs).serialize())


def main() -> None:
    """Compiles one serialised kernel for an absent TPU and prints its bundles as JSON."""
    parser = argparse.ArgumentParser(prog="python -m alm_jax.bench.kernel_cycles", description=main.__doc__)
    parser.add_argument("topology", help="v5e:1x1, v5p:2x2x1, v6e:2x2 or tpu7x:2x2x1")
    parser.add_argument("program", type=Path, help="what serialize_kernel made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIBTPU_INIT_ARGS"] = dump_options(Path(folder))
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        # JAX starts here, not before.
        import jax
        from jax import export
        from jax.sharding import SingleDeviceSharding

        from alm_jax.bench.topology import resolve

        exported = export.deserialize(options.program.read_bytes())
        device = SingleDeviceSharding(resolve(options.topology).devices[0])
        inputs = [jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=device) for aval in exported.in_avals]
        jax.jit(exported.call).trace(*inputs).lower().compile()
        print(json.dumps({"bundles": read_listing(Path(folder), "alone").count}))


if __name__ == "__main__":
    main()
