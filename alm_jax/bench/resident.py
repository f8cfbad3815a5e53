"""Host memory that a function uses, with any library: growth of the peak resident set, in a fresh process.

For comparing a JAX form with PyTorch on the CPU, where there is no compiler to ask. The function's inputs exist, its
program is compiled and its libraries are loaded before the measurement begins. Linux only.
"""

import ctypes
import gc
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from alm_jax.errors import UserError

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Value for ``/proc/self/clear_refs`` that resets the peak to the present (proc(5))."""
NUM_RUNS = 2


def growth_of(target: str, **arguments: Any) -> int:
    """Returns the bytes by which the peak of ``target``'s run exceeds what was resident before it.

    ``target`` is ``module:function``; ``function(**arguments)`` (JSON values) prepares everything and returns the
    function to measure, which takes nothing and returns when its work is done.

    Raises UserError where the process fails, or the system has no /proc.
    """
    if not CLEAR.exists():
        raise UserError("resident memory is read from /proc, which this system lacks; measure on Linux")
    command = [sys.executable, "-m", "alm_jax.bench.resident", target, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise UserError(f"measuring the memory of {target} failed: {last[0]}")
    return int(done.stdout.strip().splitlines()[-1])


def measure(run: Any) -> int:
    """Like ``growth_of``, for a function in this process: exact only where little else was freed before."""
    gc.collect()
    # Freed memory that the C library keeps would be reused without being counted.
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text(RESET_PEAK)
    before = _resident("VmRSS")
    for _ in range(NUM_RUNS):
        result = run()
        del result
    return max(_resident("VmHWM") - before, 0)


def _resident(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def main(target: str, arguments: str) -> None:
    """Prints the growth of one target in bytes, for ``growth_of``."""
    module, _, name = target.partition(":")
    print(measure(getattr(importlib.import_module(module), name)(**json.loads(arguments))))


if __name__ == "__main__":
    main(*sys.argv[1:])
