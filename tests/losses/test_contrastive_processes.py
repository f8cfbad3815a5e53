"""Every form of every contrastive loss across two processes, as several hosts run it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from contrastive_oracle import LOSSES

WORKER = Path(__file__).with_name("contrastive_worker.py")
NUM_FORMS = 5
TIMEOUT_SEC = 600


@pytest.mark.slow
def test_two_processes_of_two_devices_equal_the_formula() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER)],
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
    try:
        outputs = [process.communicate(timeout=TIMEOUT_SEC) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    assert outputs[0][0].count(" ok\n") == NUM_FORMS * len(LOSSES)
