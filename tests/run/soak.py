"""A soak: one run killed at random, again and again, and compared with the uninterrupted one.

    python tests/run/soak.py FOLDER [--kills 30] [--seed 0] [--steps 100]

Kills fall anywhere: the build of the data, compilation, steps, saves, evaluations, the report, an export of the run.
Both runs must end with the same arrays, to the last bit, and the same metrics.jsonl but for times. Prints one line a
kill and a summary.
"""

import argparse
import collections
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from alm_jax.training.checkpoint import Checkpoints
from alm_jax.training.metrics import METRICS_FILE, read_metrics

CONFIG = Path(__file__).parents[1] / "cli" / "tiny_config.py"
TIMED = ("_sec", "_per_sec")
"""Ends of the names of figures that are of the clock."""


def start(folder: Path, workdir: Path, steps: int, *, data: str) -> subprocess.Popen[str]:
    """`alm pretrain`, saving every five steps and measuring every ten."""
    command = [sys.executable, "-m", "alm_jax", "pretrain", str(CONFIG), "--workdir", str(workdir)]
    options = {
        "data.cache-dir": folder / data,
        "training.num-steps": steps,
        "training.save-every": 5,
        "training.eval-every": 10,
    }
    return spawn(
        folder, [*command, *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
    )


def spawn(folder: Path, command: list[str]) -> subprocess.Popen[str]:
    """A command with compiled programs kept in the soak's folder."""
    return subprocess.Popen(
        command,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "xla"), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def records(workdir: Path) -> list[dict[str, object]]:
    """metrics.jsonl without what is of the clock."""
    path = workdir / METRICS_FILE
    found = read_metrics(path) if path.exists() else []
    return [{name: value for name, value in record.items() if not name.endswith(TIMED)} for record in found]


def place(workdir: Path, data: Path) -> str:
    """Where the run stood when it was killed, as far as its folder tells."""
    if not any(data.rglob("index*")):
        return "data build"
    found = records(workdir)
    if not found:
        return "compilation"
    if any(".orbax-checkpoint-tmp" in path.name for path in (workdir / "checkpoints").glob("*")):
        return "save"
    step = found[-1]["step"]
    return "evaluation" if "grad_norm" in found[-1] and isinstance(step, int) and step % 10 == 0 else "steps"


def soak(folder: Path, *, kills: int, seed: int, steps: int) -> collections.Counter[str]:
    """Runs everything. Returns how many kills fell where. Raises AssertionError where the runs differ."""
    draw = random.Random(seed)
    whole, killed = folder / "uninterrupted", folder / "killed"
    began = time.monotonic()
    process = start(folder, whole, steps, data="data")
    assert process.wait() == 0, process.stderr and process.stderr.read()
    longest_sec = time.monotonic() - began
    places: collections.Counter[str] = collections.Counter()
    count = 0
    while count < kills:
        # The first kills hit a run whose data are not built yet.
        process = start(folder, killed, steps, data="other-data")
        delay_sec = draw.uniform(0.5, longest_sec * 0.9)
        try:
            code = process.wait(timeout=delay_sec)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            where = place(killed, folder / "other-data")
        else:
            assert code == 0, process.stderr and process.stderr.read()
            # The run is done: the other kills go into exports of it, and into its last evaluation again.
            export = spawn(
                folder, [sys.executable, "-m", "alm_jax", "export", str(killed), "--out", str(folder / "out")]
            )
            try:
                export.wait(timeout=draw.uniform(0.5, 12))
            except subprocess.TimeoutExpired:
                export.kill()
                export.wait()
            assert not (folder / "out").exists() or (folder / "out" / "config.json").is_file()
            where = "export"
        count += 1
        places[where] += 1
        step = max((record["step"] for record in records(killed)), default=0)
        print(f"kill {count}: {where}, after {delay_sec:.1f} s, at step {step}", flush=True)
    process = start(folder, killed, steps, data="other-data")
    assert process.wait() == 0, process.stderr and process.stderr.read()
    compare(whole, killed)
    return places


def compare(whole: Path, killed: Path) -> None:
    """Raises AssertionError unless arrays and records of both runs are the same, to the last bit."""
    ours, theirs = records(killed), records(whole)
    assert ours == theirs, [pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]][:2]
    found = []
    for run in (whole, killed):
        checkpoints = Checkpoints(run / "checkpoints")
        found.append(checkpoints.read_everything(checkpoints.steps()[-1]))
    assert found[0].keys() == found[1].keys()
    for name, array in found[0].items():
        np.testing.assert_array_equal(array.view(np.uint8), found[1][name].view(np.uint8), err_msg=name)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=100)
    own = parser.parse_args()
    own.folder.mkdir(parents=True, exist_ok=True)
    places = soak(own.folder, kills=own.kills, seed=own.seed, steps=own.steps)
    print(
        f"{own.kills} kills ({dict(places)}): arrays and records equal the uninterrupted run's to the last bit"
    )


if __name__ == "__main__":
    main()
