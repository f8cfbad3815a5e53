"""Every config there is: it builds at full size, without an array, and its header says how to run it."""

import importlib.util
import json
import re
from pathlib import Path

import jax
import pytest

from alm_jax.experiment import from_json, load_config, to_json
from alm_jax.objectives import build_objective
from alm_jax.training.mesh import MeshConfig, build_mesh
from alm_jax.training.optimizer import build_optimizer
from alm_jax.training.sharding import parameter_shardings, replicated_fraction

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_survives_its_json(path):
    config = load_config(path)
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_builds_at_full_size_and_is_cut_over_a_mesh(path):
    config = load_config(path)
    assert config.name == path.stem
    objective = build_objective(config.objective)
    params = jax.eval_shape(objective.init, jax.random.key(0))["params"]
    build_optimizer(config.optimizer, config.training.num_steps, params)
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert replicated_fraction(params, parameter_shardings(objective.axes(), params, mesh)) < 0.1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_header_names_a_command_that_runs_it(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    commands = re.findall(r"alm pretrain (\S+)", module.__doc__)
    assert commands
    assert all((ROOT / command).resolve() == path for command in commands)


def test_the_readme_names_only_configs_that_exist():
    named = re.findall(r"configs/\w+\.py", (ROOT / "README.md").read_text())
    assert named
    assert all((ROOT / name).is_file() for name in named)
