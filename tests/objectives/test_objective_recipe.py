"""CONTRIBUTING's recipe for an objective is followed, outside the package: it is found, trains and is read back."""

import dataclasses
import importlib
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from alm_jax.bench.step import example_batch
from alm_jax.errors import UserError
from alm_jax.objectives import ObjectiveConfig
from alm_jax.run.config_json import from_json, to_json
from alm_jax.training.build import build_parallel
from alm_jax.training.mesh import MeshConfig, build_mesh

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The recipe's code as a module of its own."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text[text.index("## Add an objective") :]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    (tmp_path / "clip_classification_recipe.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("clip_classification_recipe")
    sys.modules.pop("clip_classification_recipe")


def test_the_recipe_trains(recipe, load_tiny):
    config = load_tiny("tiny_masked_spectrogram")
    frontend = config.objective.model.frontend
    # The same clip in both steps, so that the loss can only fall.
    frontend = dataclasses.replace(frontend, clip=dataclasses.replace(frontend.clip, train_crop="centre"))
    own = recipe.ClipClassificationConfig(model=recipe.LinearModelConfig(frontend=frontend, num_classes=3))
    assert recipe.ClipClassificationConfig in ObjectiveConfig.kinds()
    training = dataclasses.replace(config.training, num_steps=2, num_microbatches=2)
    optimizer = dataclasses.replace(config.optimizer, warmup_steps=0, peak_lr=1e-3)
    config = dataclasses.replace(config, objective=own, training=training, optimizer=optimizer)
    text = json.dumps(to_json(config))
    assert "clip_classification_recipe:ClipClassificationConfig" in text
    assert from_json(json.loads(text), type(config)) == config

    batch = example_batch(config)
    batch["label"] = np.arange(len(batch["label"]), dtype=np.int32) % 3
    mesh = build_mesh(MeshConfig())
    parallel = build_parallel(own.build(), optimizer, training, seed=0, mesh=mesh)
    state, losses = parallel.init(), []
    for _ in range(2):
        state, metrics = parallel.step(state, batch)
        losses.append(float(metrics["loss"]))
    assert int(state.step) == 2
    assert losses[1] < losses[0]
    assert jax.tree.leaves(state.params)[0].shape == (own.model.frontend.num_features, 3)


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(UserError, match="the module no_such_package, which cannot be imported"):
        from_json({"type": "no_such_package:Config"}, ObjectiveConfig)
