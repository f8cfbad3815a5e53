"""A run that begins with a part of another: the variables of a run folder, and BEATs' iterations as three runs."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from alm_jax.cli.main import dispatch
from alm_jax.errors import UserError
from alm_jax.models.audio_tokenizer import LearnedTokenizerConfig
from alm_jax.objectives import build_objective
from alm_jax.run.config_json import to_json
from alm_jax.run.experiment import load_config
from alm_jax.run.load import is_run_folder, load_model
from alm_jax.run.train import pretrain
from alm_jax.run.workdir import CHECKPOINTS
from alm_jax.training.build import build_parallel
from alm_jax.training.checkpoint_writer import CheckpointWriter
from alm_jax.training.initialise import InitFromConfig, take_from
from alm_jax.training.mesh import build_mesh

HERE = Path(__file__).parent
TOKENIZER = load_config(HERE / "tiny_tokenizer_distillation.py")
PREDICTION = load_config(HERE / "tiny_masked_prediction.py")


def start(config):
    """The training of a config, without its data."""
    mesh = build_mesh(config.training.mesh)
    return build_parallel(
        build_objective(config.objective), config.optimizer, config.training, seed=config.seed, mesh=mesh
    )


def save(config, folder, change):
    """A run folder with one checkpoint, of the first state as ``change`` makes it."""
    parallel = start(config)
    manifest = {"config": to_json(config), "data_fingerprint": "", "class_names": []}
    checkpoints = CheckpointWriter(folder / CHECKPOINTS, keep=1, manifest=manifest)
    state = change(parallel.init())
    checkpoints.save(state, wait=True)
    checkpoints.close()
    return state


def test_a_part_of_a_run_folder_is_taken_averaged_with_its_statistics(tmp_path):
    def change(state):
        bump = functools.partial(jax.tree.map, lambda x: x + 1)
        return dataclasses.replace(
            state, ema_params=bump(state.ema_params), batch_stats=bump(state.batch_stats)
        )

    saved = save(TOKENIZER, tmp_path, change)
    assert is_run_folder(tmp_path)
    variables = load_model(tmp_path).variables
    learned = dataclasses.replace(
        PREDICTION.objective,
        model=dataclasses.replace(PREDICTION.objective.model, tokenizer=TOKENIZER.objective.model.tokenizer),
    )
    second = dataclasses.replace(PREDICTION, objective=learned)
    source = InitFromConfig(source=str(tmp_path), part="tokenizer", into="tokenizer")
    before = start(second).init()
    state, said = take_from(before, variables, source)
    for found, wanted in (
        (state.params["tokenizer"], saved.ema_params["tokenizer"]),
        (state.batch_stats["tokenizer"], saved.batch_stats["tokenizer"]),
        (state.params["encoder"], before.params["encoder"]),
        # What does not train has no average.
        (state.ema_params, {name: state.params[name] for name in ("encoder", "predictor")}),
    ):
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert said.startswith("tokenizer: ")
    with pytest.raises(
        UserError, match=r"there is no 'encodr' among \['estimator', 'teacher', 'tokenizer'\]"
    ):
        take_from(before, variables, dataclasses.replace(source, part="encodr"))


def test_a_run_folder_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / CHECKPOINTS).mkdir()
    with pytest.raises(UserError, match="no finished checkpoint yet"):
        load_model(tmp_path)


@pytest.mark.slow
def test_the_iterations_of_beats_are_three_runs(tmp_path, capsys, caplog):
    """The teacher is the first encoder, the second run's tokenizer the distilled one; neither moves in training."""
    data = dataclasses.replace(PREDICTION.data, cache_dir=str(tmp_path / "data"))

    def train(name, config, *sources):
        pretrain(dataclasses.replace(config, data=data, init_from=sources), tmp_path / name)
        return load_model(tmp_path / name).variables

    first = train("first", PREDICTION)
    teacher = InitFromConfig(source=str(tmp_path / "first"), part="encoder", into="teacher")
    tokenizer = train("tokenizer", TOKENIZER, teacher)
    jax.tree.map(np.testing.assert_array_equal, tokenizer["params"]["teacher"], first["params"]["encoder"])
    learned = TOKENIZER.objective.model.tokenizer
    assert isinstance(learned, LearnedTokenizerConfig)
    model = dataclasses.replace(PREDICTION.objective.model, tokenizer=learned)
    config = dataclasses.replace(PREDICTION, objective=dataclasses.replace(PREDICTION.objective, model=model))
    source = InitFromConfig(source=str(tmp_path / "tokenizer"), part="tokenizer", into="tokenizer")
    second = train("second", config, source)
    for kind in ("params", "batch_stats"):
        jax.tree.map(np.testing.assert_array_equal, second[kind]["tokenizer"], tokenizer[kind]["tokenizer"])
    assert "as it was drawn" not in caplog.text
    assert dispatch(["evaluate", str(tmp_path / "second")]) == 0
    assert "labels/perplexity" in capsys.readouterr().out
