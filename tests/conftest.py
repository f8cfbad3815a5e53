"""Session settings: CPU, eight simulated devices, strict numerics, no network."""

import os
import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")
# Most of the suite's time is compilation, which this halves; what is computed stays the same to rounding.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


def start_with_fast_compiler() -> None:
    """Start the CPU's compiler with the emitters that compile fastest: the suite's time is mostly compilation.

    XLA reads its flags once, when it first compiles. Afterwards they are taken out of the environment again, since
    libtpu, which some tests load, ends the process on flags that it does not know.
    """
    before = os.environ.get("XLA_FLAGS")
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{flags} {before or ''}"
    jax.jit(lambda x: x + 1)(1.0).block_until_ready()
    if before is None:
        del os.environ["XLA_FLAGS"]
    else:
        os.environ["XLA_FLAGS"] = before


start_with_fast_compiler()

DATA_DIR = Path(
    os.environ.get("ALM_DATA_DIR", Path(__file__).parents[1] / ".." / "shared" / "data")
).resolve()


def seed_global_generators() -> None:
    """Start Python's, NumPy's and PyTorch's global generators anew; PyTorch's draws the weights of oracles."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup() -> Iterator[None]:
    """What a fixture draws depends on no test or fixture before it."""
    seed_global_generators()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call() -> Iterator[None]:
    """What a test draws depends on no test before it."""
    seed_global_generators()
    return (yield)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random inputs of one test and of its fixtures: a module's generator would depend on the tests before."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def data_dir() -> Path | None:
    """Folder of real recordings, None where it is absent: for a test that can do without."""
    return DATA_DIR if DATA_DIR.is_dir() else None


@pytest.fixture(scope="session")
def real_data_dir() -> Path:
    """Folder of real recordings (ESC-10, FSDD, AudioCaps captions); the test skips where it is absent."""
    if not DATA_DIR.is_dir():
        pytest.skip(f"real recordings are not at {DATA_DIR}; set ALM_DATA_DIR to run this test")
    return DATA_DIR


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory_maps() -> Iterator[None]:
    """Drop compiled programs before the process runs out of memory maps.

    On the CPU every program holds about four maps. Linux gives a process 65,530 (vm.max_map_count), and XLA ends with a
    segmentation fault beyond them. Programs that files share are kept below the bound.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 10_000:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection that leaves this machine is an error."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
