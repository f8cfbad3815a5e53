"""launch/local.sh: ports of its own, and the end of all after the end of one."""

import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults
SCRIPT = Path(__file__).parents[2] / "launch" / "local.sh"


def launch(folder, body, count="2", **environment):
    (folder / "alm").write_text(f"#!/usr/bin/env bash\n{body}\n")
    (folder / "alm").chmod(0o755)
    return subprocess.Popen(
        ["bash", str(SCRIPT), count, "pretrain"],
        env={"PATH": f"{folder}:/usr/bin:/bin"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_each_launch_has_a_port_of_its_own(tmp_path):
    outputs = [
        launch(
            tmp_path, 'echo "$JAX_COORDINATOR_ADDRESS $JAX_PROCESS_ID of $JAX_NUM_PROCESSES"'
        ).communicate()[0]
        for _ in range(2)
    ]
    addresses = [{line.split()[0] for line in output.splitlines()} for output in outputs]
    assert [len(found) for found in addresses] == [1, 1]
    assert addresses[0] != addresses[1]
    assert sorted(line.split()[1] for line in outputs[0].splitlines()) == ["0", "1"]


def test_the_first_error_is_the_exit_code_and_ends_the_rest(tmp_path):
    body = 'if [ "$JAX_PROCESS_ID" = 1 ]; then exit 3; fi; trap "echo ended; exit 76" TERM\n'
    body += "for i in $(seq 600); do sleep 0.1; done"
    began = time.monotonic()
    process = launch(tmp_path, body, END_SEC="1")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    assert output == "ended\n"
    assert "a process ended with code 3" in errors
    assert time.monotonic() - began < 30


def test_a_request_to_stop_reaches_all_and_waits_for_them(tmp_path):
    body = 'trap "sleep 1; echo saved; exit 75" TERM; echo up; for i in $(seq 600); do sleep 0.1; done'
    process = launch(tmp_path, body, END_SEC="0")
    assert process.stdout.readline() == "up\n"
    assert process.stdout.readline() == "up\n"
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert output == "saved\nsaved\n"
