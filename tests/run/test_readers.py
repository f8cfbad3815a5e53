"""Real processes that read a run: beside one that saves every step, and where they may not write."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alm_jax.run.load import load_model
from alm_jax.run.workdir import CHECKPOINTS, METRICS_FILE
from alm_jax.training.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.faults]
CONFIG = Path(__file__).parents[1] / "cli" / "tiny_config.py"
NUM_EVALUATIONS = 3
WITHOUT_PRIVILEGES = (
    "setpriv",
    "--inh-caps=-dac_override,-dac_read_search",
    "--bounding-set=-dac_override,-dac_read_search",
)
"""Makes root obey the permissions of files, as everyone else does."""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """(arguments of `alm`, what runs it) -> the process."""
    folder = tmp_path_factory.mktemp("readers")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder / "xla")}

    def start(*args: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen:
        command = [*prefix, sys.executable, "-m", "alm_jax", *args]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


@pytest.fixture(scope="module")
def watched(start, tmp_path_factory):
    """A run that saved every step while others read it, and the steps that they found."""
    folder = tmp_path_factory.mktemp("watched")
    run, evaluated, loaded = folder / "run", [], []
    training = start(
        *("pretrain", str(CONFIG), "--workdir", str(run), "--data.cache-dir", str(folder / "data")),
        *("--training.num-steps", "100000", "--training.save-every", "1", "--training.keep-checkpoints", "2"),
        *("--training.eval-every", "0"),
    )
    try:
        while not any((run / CHECKPOINTS).glob("[0-9]*[0-9]")):
            assert training.poll() is None, training.stderr.read()
            time.sleep(0.1)
        for number in range(NUM_EVALUATIONS):
            evaluation = start("evaluate", str(run), "--out", str(folder / str(number)), "--json", "-")
            while evaluation.poll() is None:
                loaded.append(load_model(run).provenance.step)
            out, errors = evaluation.communicate()
            assert evaluation.returncode == 0, errors
            assert "falling back" not in errors
            evaluated.append(json.loads(out)["step"])
        training.send_signal(signal.SIGTERM)
        errors = training.communicate()[1]
        assert training.returncode == 75, errors
        assert "could not" not in errors
    finally:
        training.kill()
    return run, evaluated, loaded


def test_no_step_is_damaged_or_missing_beside_readers(watched):
    run, evaluated, loaded = watched
    assert evaluated == sorted(evaluated)
    assert loaded == sorted(loaded)
    assert len(set(loaded)) > NUM_EVALUATIONS
    losses = [record["step"] for record in read_metrics(run / METRICS_FILE) if "loss" in record]
    last = losses[-1]
    assert losses == list(range(1, last + 1))
    assert sorted(path.name for path in (run / CHECKPOINTS).iterdir()) == sorted((str(last - 1), str(last)))
    assert [load_model(f"{run}@{step}").provenance.step for step in (last - 1, last)] == [last - 1, last]


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_run_that_may_not_be_written_to_is_evaluated(watched, start):
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root writes anywhere, and setpriv, which takes that away, is not installed")
    run = watched[0]
    everything = [run, *run.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = contents(run)
    try:
        evaluation = start(
            *("evaluate", str(run), "--json", "-"), prefix=WITHOUT_PRIVILEGES if os.geteuid() == 0 else ()
        )
        out, errors = evaluation.communicate()
    finally:
        for path in everything:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert evaluation.returncode == 0, errors
    assert "the figures are not kept: cannot write to" in errors
    figures, kept = json.loads(out), json.loads((run.parent / "0" / "evaluation.json").read_text())
    assert figures.keys() == kept.keys()
    assert contents(run) == before
