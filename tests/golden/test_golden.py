"""Files that an earlier version wrote: its configs and checkpoints load, and give the figures of that time.

``configs/`` has the JSON of every config of the tests (tiny_*) and of ``configs/``, of format 1, and
``parameters.json`` how many arrays and numbers each model had. ``runs/`` has a run folder of each objective after two
steps, as an archive without its report. Its model is that of ``tests/cli/tiny_*.py`` made smaller, with batch
statistics and an average (contrastive), adapters (language_modeling), or codebooks (tokenizer_distillation).

The files are never changed: where one no longer loads, a migration is missing (``alm_jax/run/migrate.py``). Files of a
newer format are added beside them.
"""

import json
import math
import tarfile
from pathlib import Path

import jax
import pytest

from alm_jax.cli.main import dispatch
from alm_jax.objectives import build_objective
from alm_jax.run.config_json import to_json
from alm_jax.run.experiment import load_config, read_experiment
from alm_jax.run.workdir import flatten
from alm_jax.training.build import build_parallel
from alm_jax.training.checkpoint import as_tree, check_same_arrays, describe_arrays
from alm_jax.training.lora import add_adapters
from alm_jax.training.mesh import build_mesh

HERE = Path(__file__).parent
CONFIGS = sorted((HERE / "configs").glob("*.json"))
PARAMETERS = json.loads((HERE / "parameters.json").read_text())
RUNS = sorted((HERE / "runs").glob("*.tar.xz"))
SOURCES = {
    path.stem: path
    for folder in (HERE.parent / "cli", HERE.parents[1] / "configs")
    for path in sorted(folder.glob("*.py"))
}
RENAMED = {"synthetic_together_nano": "synthetic_multi_task_nano", "tiny_together": "tiny_multi_task"}
"""Names of golden files whose config file has another name now."""
CHANGED_SINCE: dict[str, tuple[str, ...]] = {
    # Not read where a tokenizer has a path; it is the model's now.
    "esc10_minilm_frozen_text": ("data/tokenizer/vocab_size", "data/tokenizer/path", "init_from"),
    **dict.fromkeys(RENAMED, ("name",)),
}
"""Fields ("training/num_steps", or what they begin with) of a config file that were changed on purpose, by its name."""
EVALUATED = ("contrastive", "language_modeling")
"""Runs whose figures the default suite computes again; the others are compared by `pytest -m slow`."""


RENAMED_FIGURES = {
    "contrastive/loss": "validation/contrastive_loss",
    "masked_text/": "validation/masked_text/",
    "masked_audio/": "validation/masked_audio/",
    "units_to_text/accuracy": "answers/exact_match",
}
"""Beginnings of the names of figures that were called otherwise when the runs were recorded."""


def renamed(name: str) -> str:
    """What a recorded figure is called now."""
    old = next((old for old in RENAMED_FIGURES if name.startswith(old)), None)
    return name if old is None else RENAMED_FIGURES[old] + name[len(old) :]


def name_of(path: Path) -> str:
    return path.name.partition(".")[0]


def file_of(path: Path) -> str:
    return RENAMED.get(name_of(path), name_of(path))


def count(tree) -> dict[str, int]:
    leaves = jax.tree.leaves(tree)
    return {"num_arrays": len(leaves), "num_numbers": sum(math.prod(leaf.shape) for leaf in leaves)}


@pytest.fixture
def run(request, tmp_path, monkeypatch) -> Path:
    """A recorded run, unpacked in the working directory; data are built beside it."""
    monkeypatch.chdir(tmp_path)
    with tarfile.open(request.param) as archive:
        archive.extractall(filter="data")
    return Path(name_of(request.param))


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_a_config_is_read_and_written_as_one_of_this_version(path):
    config = read_experiment(json.loads(path.read_text()))
    assert config.name in (name_of(path), "tiny")
    assert read_experiment(json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize("path", [path for path in CONFIGS if file_of(path) in SOURCES], ids=name_of)
def test_a_config_means_what_its_file_says(path, monkeypatch):
    """Migrations change names, not values."""
    monkeypatch.delenv(
        "ALM_DATA_DIR", raising=False
    )  # the files were written with the default place of recordings
    found = flatten(to_json(read_experiment(json.loads(path.read_text()))))
    expected = flatten(to_json(load_config(SOURCES[file_of(path)])))
    changed = {key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)}
    assert {key for key in changed if not key.startswith(CHANGED_SINCE.get(name_of(path), ()))} == set()


@pytest.mark.parametrize(
    "path",
    # Those of configs/ are built at full size by tests/test_configs.py too.
    [
        pytest.param(path, marks=[] if path.name.startswith("tiny_") else [pytest.mark.slow])
        for path in CONFIGS
    ],
    ids=name_of,
)
def test_a_config_builds_the_model_that_it_built(path):
    config = read_experiment(json.loads(path.read_text()))
    objective = add_adapters(build_objective(config.objective), config.lora)
    assert count(jax.eval_shape(objective.init, jax.random.key(0))) == PARAMETERS[name_of(path)]


def test_every_config_and_kind_of_run_is_there():
    assert {name_of(path) for path in CONFIGS} == PARAMETERS.keys()
    objectives = {
        json.loads(path.read_text())["objective"]["type"] for path in CONFIGS if path.name.startswith("tiny_")
    }
    assert len(RUNS) == len(objectives)


@pytest.mark.parametrize("run", RUNS, indirect=True, ids=name_of)
def test_a_checkpoint_has_the_arrays_of_this_version(run):
    """Parameters, averages, statistics and the optimizer's moments, by name, shape and type: training may go on."""
    manifest = json.loads((run / "checkpoints/2/manifest/metadata").read_text())
    config = read_experiment(manifest["config"])
    objective = add_adapters(build_objective(config.objective), config.lora)
    mesh = build_mesh(config.training.mesh)
    parallel = build_parallel(objective, config.optimizer, config.training, seed=config.seed, mesh=mesh)
    wanted = describe_arrays(as_tree(parallel.abstract()), with_checksums=False)
    check_same_arrays(manifest["arrays"], wanted, str(run))


@pytest.mark.parametrize(
    "run",
    [pytest.param(path, marks=[] if name_of(path) in EVALUATED else [pytest.mark.slow]) for path in RUNS],
    indirect=True,
    ids=name_of,
)
def test_a_checkpoint_is_restored_and_gives_the_figures_that_the_run_recorded(run, capsys):
    """Restoring compares every array with its checksum."""
    recorded = json.loads((run / "evaluation.json").read_text())
    assert dispatch(["evaluate", str(run), "--json", "-"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    recorded = {renamed(name): value for name, value in recorded.items()}
    assert found.keys() >= recorded.keys()
    for name, value in recorded.items():
        assert found[name] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), name
