"""Signals end a command at once with one line, also while compiled code runs; training takes them over."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.faults
START = (
    "from alm_jax import signals; signals.serve('{command}', is_continuable={continuable})\n"
    "print('ready', flush=True)\n"
)
WORK = {
    "python": "while True: pass",
    "a library": "import time; time.sleep(100)",
    # No instruction of Python runs in the main thread meanwhile.
    "compiled code": "import hashlib; hashlib.pbkdf2_hmac('sha256', b'x', b'y', 10**9)",
}


def start(code: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize(
    ("command", "continuable", "number", "code"),
    [
        ("pretrain", True, signal.SIGTERM, 75),
        ("evaluate", False, signal.SIGTERM, 143),
        ("export", False, signal.SIGINT, 130),
    ],
)
def test_a_signal_ends_a_command_at_once(work, command, continuable, number, code):
    process = start(START.format(command=command, continuable=continuable) + WORK[work])
    time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors.startswith(f"alm {command}: stopped by {number.name}")
    assert errors.count("\n") == 1
    assert ("the same command continues" in errors) == continuable


def test_training_takes_signals_over():
    code = START.format(command="pretrain", continuable=True) + (
        "import time\nfrom alm_jax.training.faults import StopRequest, Interruption\n"
        "with StopRequest() as stop:\n"
        "    print('inside', flush=True)\n"
        "    while not stop.reached(1): time.sleep(0.01)\n"
        "    print('asked', flush=True)\n"
        "    try:\n"
        "        with stop.interruptible(): time.sleep(100)\n"
        "    except Interruption: print('given up', flush=True)\n"
        "time.sleep(100)"
    )
    process = start(code)
    assert process.stdout.readline() == "inside\n"
    os.kill(process.pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    # A request that the block did not end with is served after it.
    assert (output, process.returncode) == ("asked\ngiven up\n", 75)
    assert errors.startswith("alm pretrain: stopped by SIGTERM")


def test_an_evaluation_is_interrupted():
    code = START.format(command="pretrain", continuable=True) + (
        "import time\nfrom alm_jax.training.faults import StopRequest, Interruption\n"
        "with StopRequest() as stop:\n"
        "    try:\n"
        "        with stop.interruptible():\n"
        "            print('inside', flush=True)\n"
        "            time.sleep(100)\n"
        "    except Interruption: print('given up', stop.reached(1), flush=True)\n"
        "    raise SystemExit(7)\n"
    )
    process = start(code)
    assert process.stdout.readline() == "inside\n"
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert (output, process.returncode) == ("given up True\n", 7)


def test_a_signal_to_a_forked_child_is_not_one_to_its_parent():
    code = START.format(command="data", continuable=True) + (
        "import os, signal, time\n"
        "reader, writer = os.pipe()\n"
        "child = os.fork()\n"
        "if child == 0: os.write(writer, b'x'); time.sleep(100)\n"
        "os.read(reader, 1)\n"
        "os.kill(child, signal.SIGTERM)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "time.sleep(0.5)\n"
    )
    process = start(code)
    output, _ = process.communicate(timeout=60)
    assert (output, process.returncode) == (f"{-signal.SIGTERM}\n", 0)
