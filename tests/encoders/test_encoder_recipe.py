"""CONTRIBUTING's recipe for an encoder, run: an encoder defined outside the package is a tower that trains."""

import dataclasses
import json
import re
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_towers import objective_config as objective_config
from training_batches import make_batch

from alm_jax.encoders import families
from alm_jax.encoders.family import AudioTowerConfig
from alm_jax.encoders.tower import build_tower
from alm_jax.models.two_towers import TwoTowersConfig
from alm_jax.objectives import build_objective
from alm_jax.run.config_json import from_json, to_json
from alm_jax.training.build import build_parallel
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.mesh import build_mesh
from alm_jax.training.optimizer import AdamWConfig

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The folder of ``toy_encoder.py``, importable; what it registers is forgotten afterwards."""
    section = CONTRIBUTING.read_text().split("## Add an encoder")[1].split("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (tmp_path / "toy_encoder.py").write_text(textwrap.dedent(block))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    families.FAMILIES.pop("mean", None)
    sys.modules.pop("toy_encoder", None)


def test_an_encoder_from_outside_trains_for_two_steps(recipe, objective_config):
    import toy_encoder

    nano = toy_encoder.VARIANTS["nano"]
    assert toy_encoder.MeanConfig in AudioTowerConfig.kinds()
    model = dataclasses.replace(objective_config.model, audio=nano, padding="masked")
    assert from_json(json.loads(json.dumps(to_json(model))), TwoTowersConfig) == model
    training = TrainingConfig(num_steps=2, batch_size=8, ema_decay=0.9)
    mesh = build_mesh(training.mesh, jax.devices()[:1])
    parallel = build_parallel(
        build_objective(dataclasses.replace(objective_config, model=model)),
        AdamWConfig(warmup_steps=1, peak_lr=1e-2),
        training,
        seed=0,
        mesh=mesh,
    )
    state = parallel.init()
    before = jax.device_get(state.params["audio"])
    for _ in range(2):
        state, metrics = parallel.step(state, make_batch(8))
    assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), jax.device_get(state.params["audio"]), before)
    assert all(jax.tree.leaves(moved))


def test_an_entry_point_of_an_installed_package_is_found(recipe, monkeypatch):
    """A config that is read back needs no import by hand."""
    info = recipe / "toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[alm_jax.families]\ntoy = toy_encoder\n")
    assert [entry.value for entry in metadata.entry_points(group="alm_jax.families")] == ["toy_encoder"]
    families.import_installed.cache_clear()
    names = [kind.__name__ for kind in AudioTowerConfig.kinds()]
    assert "MeanConfig" in names
    assert type(build_tower(families.FAMILIES["mean"].variants["nano"])).__name__ == "Mean"
