"""Two processes: one is killed, hangs or fails, and the other ends with one line and a stated exit code."""

import os
import signal
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.faults
CODE = """
import sys, time, jax
from alm_jax.training import distributed
from alm_jax.training.peers import Peers
distributed.initialize(connect_timeout_sec=60, peer_timeout_sec=6)
with Peers(6):
    print("ready", flush=True)
    if sys.argv[1] == "fails" and jax.process_index() == 1:
        raise SystemExit(2)
    time.sleep(0 if sys.argv[1] == "ends" else 100)
"""


def start(mode):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, mode],
            env=os.environ
            | {
                "JAX_PLATFORMS": "cpu",
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(index),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    return processes


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(
    ("number", "what"),
    [
        (signal.SIGKILL, "was killed"),
        pytest.param(signal.SIGSTOP, "gave no sign of life", marks=pytest.mark.slow),
    ],
)
def test_one_ends_the_other_with_a_line(victim, number, what):
    processes = start("waits")
    other = processes[1 - victim]
    processes[victim].send_signal(number)
    _, errors = other.communicate(timeout=60)
    processes[victim].kill()
    processes[victim].communicate()
    assert other.returncode == 76, errors
    assert f"process {victim} of 2 {what}" in errors
    assert "same command to continue" in errors
    lines = [line for line in errors.splitlines() if line.startswith("alm: ")]
    assert len(lines) == 1, errors
    if victim:  # JAX's own service, which the first process runs, is not quiet about its end.
        assert len(errors.splitlines()) == 2, errors


def test_an_error_of_one_ends_the_other():
    processes = start("fails")
    processes[1].communicate(timeout=60)
    assert processes[1].returncode == 2
    _, errors = processes[0].communicate(timeout=60)
    assert processes[0].returncode == 76
    assert "process 1 of 2 ended with an error" in errors


@pytest.mark.slow
def test_a_good_end_is_no_loss():
    for process in start("ends"):
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
