"""Real processes, really killed: the same command continues as if nothing had happened."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from alm_jax.training.metrics import METRICS_FILE, read_metrics

CONFIG = Path(__file__).with_name("tiny_config.py")
NUM_STEPS = 100
TIMEOUT_SEC = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def start(folder):
    """Starts `alm pretrain` on a work folder, as a user would."""

    def start(workdir: Path, **environment: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "alm_jax", "pretrain", str(CONFIG), "--workdir", str(workdir)]
        return subprocess.Popen(
            [*command, "--data.cache-dir", str(folder / "data")],
            env=os.environ
            | {"JAX_COMPILATION_CACHE_DIR": str(folder / "xla"), "JAX_PLATFORMS": "cpu"}
            | environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def losses(workdir: Path) -> dict[int, float]:
    path = workdir / METRICS_FILE
    records = read_metrics(path) if path.exists() else []
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def finish(process: subprocess.Popen, expected: int = 0) -> str:
    try:
        _, errors = process.communicate(timeout=TIMEOUT_SEC)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    assert process.returncode == expected, errors
    return errors


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def wait_for_step(process: subprocess.Popen, workdir: Path, step: int) -> None:
    deadline = time.monotonic() + TIMEOUT_SEC
    while max(losses(workdir), default=0) < step:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(start, folder):
    workdir = folder / "uninterrupted"
    finish(start(workdir))
    found = losses(workdir)
    assert list(found) == list(range(1, NUM_STEPS + 1))
    assert np.isfinite(list(found.values())).all()
    return found


@pytest.fixture(scope="module")
def stopped(start, folder):
    """A run that was killed in the middle, continued, and then asked to stop."""
    workdir = folder / "stopped"
    process = start(workdir)
    wait_for_step(process, workdir, 23)
    kill(process)
    killed_after = max(losses(workdir))
    process = start(workdir)
    # The records of steps that are not in a checkpoint are taken back, and made again.
    wait_for_step(process, workdir, killed_after + 12)
    process.send_signal(signal.SIGTERM)
    errors = finish(process, expected=75)
    assert "continuing after step" in errors
    assert "run the same command again to continue" in errors
    return workdir


def test_every_loss_after_kill_and_stop_is_the_same_to_the_last_bit(start, folder, uninterrupted, stopped):
    workdir = folder / "continued"
    shutil.copytree(stopped, workdir)
    assert max(losses(workdir)) < NUM_STEPS
    finish(start(workdir))
    assert losses(workdir) == uninterrupted


def test_another_number_of_processes_and_devices_continues_to_rounding(start, folder, uninterrupted, stopped):
    """Noise is drawn for the global batch, so even dropout is the same on 2 x 2 devices."""
    workdir = folder / "two_processes"
    shutil.copytree(stopped, workdir)
    before = max(losses(workdir))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        start(
            workdir,
            JAX_NUM_CPU_DEVICES="2",
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(index),
        )
        for index in range(2)
    ]
    for process in processes:
        finish(process)
    found = losses(workdir)
    assert list(found) == list(range(1, NUM_STEPS + 1))
    assert {step: found[step] for step in range(1, before + 1)} == {
        step: uninterrupted[step] for step in range(1, before + 1)
    }
    later = range(before + 1, NUM_STEPS + 1)
    np.testing.assert_allclose([found[s] for s in later], [uninterrupted[s] for s in later], rtol=1e-3)
