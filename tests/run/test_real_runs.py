"""Real runs under real faults: stopped in an evaluation, read while they save, on a full disk, continued otherwise."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
from soak import CONFIG, records, spawn, start

from alm_jax.run.checkpoints import verify
from alm_jax.training.checkpoint import Checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.faults]
NUM_STEPS = 40
TIMEOUT_SEC = 900


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(folder):
    """The uninterrupted run."""
    process = start(folder, folder / "whole", NUM_STEPS, data="data")
    assert process.wait(TIMEOUT_SEC) == 0, process.stderr.read()
    return folder / "whole"


def wait_until(process, is_so):
    deadline = time.monotonic() + TIMEOUT_SEC
    while not is_so():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def steps_of(workdir):
    return [(record["step"], "grad_norm" in record) for record in records(workdir)]


@pytest.mark.parametrize("step", [10, NUM_STEPS])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_in_an_evaluation_lacks_no_record(folder, whole, step, number):
    workdir = folder / f"stopped-{step}-{number}"
    process = start(folder, workdir, NUM_STEPS, data="data")
    # The step is recorded and saved, and its evaluation runs.
    wait_until(process, lambda: (workdir / "checkpoints" / str(step)).is_dir())
    process.send_signal(number)
    _, errors = process.communicate(timeout=TIMEOUT_SEC)
    assert process.returncode in (75, 130) if number != signal.SIGKILL else -signal.SIGKILL, errors
    assert "Traceback" not in errors
    process = start(folder, workdir, NUM_STEPS, data="data")
    assert process.wait(TIMEOUT_SEC) == 0, process.stderr.read()
    assert records(workdir) == records(whole)
    assert (step, False) in steps_of(workdir)


def test_readers_beside_a_run_that_saves_every_step_damage_nothing(folder):
    workdir = folder / "read"
    command = [sys.executable, "-m", "alm_jax", "pretrain", str(CONFIG), "--workdir", str(workdir)]
    options = [
        "--training.num-steps",
        "150",
        "--training.save-every",
        "1",
        "--data.cache-dir",
        str(folder / "data"),
    ]
    process = spawn(folder, [*command, *options])
    wait_until(process, lambda: len(Checkpoints(workdir / "checkpoints").steps()) >= 2)
    codes = []
    while process.poll() is None:
        reader = spawn(
            folder, [sys.executable, "-m", "alm_jax", "evaluate", str(workdir), "--out", str(folder / "out")]
        )
        _, errors = reader.communicate(timeout=TIMEOUT_SEC)
        codes.append(reader.returncode)
        assert reader.returncode == 0, errors
    assert process.returncode == 0, process.stderr.read()
    assert codes
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["149", "150"]
    assert not verify(workdir)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no small file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_full_for_a_while_loses_nothing(folder, whole, small_disk):
    workdir = small_disk / "run"
    process = start(folder, workdir, NUM_STEPS, data="data")
    wait_until(process, lambda: (workdir / "checkpoints" / "5").is_dir())
    before = steps_of(workdir)[-1][0]
    with (small_disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(os.urandom(4096))
    time.sleep(5)
    assert process.poll() is None, process.stderr.read()
    assert steps_of(workdir)[-1][0] >= before
    (small_disk / "filler").unlink()
    _, errors = process.communicate(timeout=TIMEOUT_SEC)
    assert process.returncode == 0, errors
    assert "training goes on" in errors
    assert records(workdir) == records(whole)
    assert not verify(workdir)


def test_a_run_is_forked_with_more_steps(folder, whole):
    workdir = folder / "forked"
    command = [sys.executable, "-m", "alm_jax", "pretrain", str(CONFIG), "--workdir", str(workdir)]
    options = ["--training.num-steps", "45", "--training.save-every", "5", "--training.eval-every", "10"]
    options += ["--data.cache-dir", str(folder / "data"), "--fork", f"{whole}@35"]
    process = spawn(folder, [*command, *options])
    _, errors = process.communicate(timeout=TIMEOUT_SEC)
    assert process.returncode == 0, errors
    assert f"training.num_steps: {NUM_STEPS} -> 45" in errors
    ours, theirs = records(workdir), records(whole)
    assert ours[-1]["step"] == 45
    assert [record for record in ours if record["step"] <= 35] == [r for r in theirs if r["step"] <= 35]
    assert records(whole) == theirs


@pytest.mark.parametrize("step", [1, 33, NUM_STEPS])
def test_a_step_is_replayed_to_the_last_bit(folder, whole, step):
    process = subprocess.run(
        [sys.executable, "-m", "alm_jax", "replay", str(whole), str(step)],
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "xla"), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "equal to the record, to the last bit" in process.stdout
    assert "audio/" in process.stdout


def test_a_run_is_run_again_from_its_record(folder, whole):
    workdir = folder / "again"
    command = [
        sys.executable,
        "-m",
        "alm_jax",
        "pretrain",
        str(whole / "config.json"),
        "--workdir",
        str(workdir),
    ]
    process = spawn(folder, command)
    _, errors = process.communicate(timeout=TIMEOUT_SEC)
    assert process.returncode == 0, errors
    assert records(workdir) == records(whole)
