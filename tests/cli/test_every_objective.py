"""Every objective trains from a config, continues to the last bit, and leaves its figures and its page."""

import json
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from alm_jax.cli.main import dispatch
from alm_jax.experiment import load_config
from alm_jax.objectives import ContrastiveConfig, ObjectiveConfig
from alm_jax.training.metrics import METRICS_FILE, read_metrics
from alm_jax.training.workdir import CHECKPOINTS, EVALUATION

CONFIGS = {
    type(load_config(path).objective): path for path in sorted(Path(__file__).parent.glob("tiny_*.py"))
}
STEPS = ("--training.num-steps", "8", "--training.save-every", "4", "--training.keep-checkpoints", "3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("objectives")


def losses(workdir: Path) -> dict[int, float]:
    records = read_metrics(workdir / METRICS_FILE)
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def test_every_objective_has_a_tiny_config():
    assert CONFIGS.keys() == set(get_args(ObjectiveConfig))


def kinds() -> list:
    """Contrastive runs are continued in test_resume.py too, by real processes."""
    return [
        pytest.param(kind, id=kind.__name__, marks=[pytest.mark.slow] * (kind is ContrastiveConfig))
        for kind in get_args(ObjectiveConfig)
    ]


@pytest.mark.parametrize("kind", kinds())
def test_it_continues_to_the_last_bit(kind, folder, capsys):
    def run(workdir: Path) -> None:
        own = ["--workdir", str(workdir), "--data.cache-dir", str(folder / "data")]
        assert dispatch(["pretrain", str(CONFIGS[kind]), *own, *STEPS]) == 0, capsys.readouterr().err

    whole, half = folder / kind.__name__, folder / f"{kind.__name__}-continued"
    run(whole)
    found = losses(whole)
    assert list(found) == list(range(1, 9))
    assert np.isfinite(list(found.values())).all()
    # As a run leaves it that was killed before its second save.
    shutil.copytree(whole, half)
    for step in (half / CHECKPOINTS).glob("*8*"):
        shutil.rmtree(step)
    for leftover in (EVALUATION, "report.html"):
        (half / leftover).unlink()
    run(half)
    assert "continuing after step 4" in capsys.readouterr().err
    assert losses(half) == found
    figures = json.loads((half / EVALUATION).read_text())
    assert figures == json.loads((whole / EVALUATION).read_text())
    assert np.isfinite(figures["validation/loss"])
    assert "</html>" in (half / "report.html").read_text()
