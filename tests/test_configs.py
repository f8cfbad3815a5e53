"""Every config there is: it builds at full size, without an array, and its header says how to run it."""

import importlib.util
import json
import re
from pathlib import Path

import jax
import pytest

from alm_jax.bench.footprint import measure_footprint
from alm_jax.bench.topology import read_name
from alm_jax.objectives import build_objective
from alm_jax.run.config_json import to_json
from alm_jax.run.experiment import load_config, read_experiment
from alm_jax.training.mesh import MeshConfig, build_mesh
from alm_jax.training.optimizer import build_optimizer
from alm_jax.training.sharding import parameter_shardings, replicated_fraction

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_survives_its_json(path):
    config = load_config(path)
    assert read_experiment(json.loads(json.dumps(to_json(config)))) == config


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


def full_size() -> list[tuple[Path, str]]:
    """Configs whose header lays them out on a slice, and that slice."""
    found = ((path, re.search(r"alm compile \S+ --topology (\S+)", path.read_text())) for path in CONFIGS)
    return [(path, command[1]) for path, command in found if command]


@pytest.mark.parametrize(("path", "topology"), full_size(), ids=lambda value: getattr(value, "stem", None))
def test_it_fits_the_chips_of_its_slice_and_takes_what_its_header_says(path, topology):
    num_devices, chip = read_name(topology)
    assert num_devices == 256
    footprint = measure_footprint(load_config(path), num_devices)
    assert footprint.total_bytes < chip.hbm_bytes
    says = re.search(r"State and batch take ([\d.]+) GiB of a chip's (\d+)\.", path.read_text())
    assert says is not None
    assert float(says[1]) == round(footprint.total_bytes / 2**30, 2)
    assert int(says[2]) * 2**30 == chip.hbm_bytes
    # What is whole on every chip of a mesh that cuts is no weight of a layer.
    assert footprint.replicated == []


def test_the_readme_names_only_configs_that_exist():
    named = re.findall(r"configs/\w+\.py", (ROOT / "README.md").read_text())
    assert named
    assert all((ROOT / name).is_file() for name in named)
