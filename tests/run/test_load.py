"""`load_model`: every kind of source by one function, and what it does not load."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from alm_jax.encoders.audio import ast as ast_encoder
from alm_jax.errors import DataError, UserError
from alm_jax.run.experiment import load_config
from alm_jax.run.load import load_model, load_run, split_step
from alm_jax.run.workdir import CHECKPOINTS, METRICS_FILE

CONFIG = load_config(Path(__file__).parents[1] / "cli" / "tiny_config.py")


def value(model):
    return {float(np.unique(leaf).item()) for leaf in jax.tree.leaves(model.variables["params"])}


@pytest.mark.parametrize(("step", "expected"), [("", 30), ("@10", 10), ("@20", 20), ("@best", 20)])
def test_a_step_of_a_run_is_chosen(run, step, expected):
    model = load_model(f"{run}{step}")
    offset = 0.5 if CONFIG.training.ema_decay else 0.0
    assert value(model) == {expected + offset}
    assert model.provenance.step == expected
    assert model.provenance.kind == "run"
    assert model.provenance.data_fingerprint == "abc"
    assert model.config == CONFIG.objective.model
    assert model.experiment == CONFIG
    assert model.tokenizer is not None
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(model.variables))


def test_fingerprints_tell_models_apart(run):
    assert load_model(run).fingerprint == load_model(f"{run}@30").fingerprint
    assert load_model(run).fingerprint != load_model(f"{run}@20").fingerprint


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("RUN@15", r"no checkpoint of step 15; it has \[10, 20, 30\]"),
        ("RUN/config.json@3", "is no run folder"),
        ("RUN/absent", "no such folder or file"),
        ("RUN/checkpoints", "config.json"),
    ],
)
def test_what_is_no_model_is_refused(run, source, says):
    with pytest.raises(UserError, match=says):
        load_model(source.replace("RUN", str(run)))


def test_the_best_needs_a_figure(run):
    kept = (run / METRICS_FILE).rename(run / "kept")
    try:
        with pytest.raises(UserError, match="the best is not known"):
            load_model(f"{run}@best")
    finally:
        kept.rename(run / METRICS_FILE)


def test_a_name_with_an_at_sign_is_a_name(tmp_path):
    assert split_step("run@60") == (tmp_path.__class__("run"), "60")
    assert split_step("owner/name@x") == (tmp_path.__class__("owner/name@x"), None)
    (tmp_path / "run@60").mkdir()
    assert split_step(tmp_path / "run@60") == (tmp_path / "run@60", None)


def test_readers_fall_back_as_training_does(run, tmp_path, caplog):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    (folder / CHECKPOINTS / "30" / "manifest" / "metadata").write_text("{")
    assert load_model(folder).provenance.step == 20
    assert load_run(folder) == CONFIG
    assert "falling back" in caplog.text
    with pytest.raises(DataError, match="is damaged"):
        load_model(f"{folder}@30")


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A folder as `alm import` writes it."""
    from alm_jax.encoders import family
    from alm_jax.interop.folder import ImportedModel
    from alm_jax.interop.formats import FORMATS
    from alm_jax.run.model_folder import save_model_folder

    config = ast_encoder.NANO
    layout = next(item for item in FORMATS.values() if item.config_type is type(config))
    variables = jax.device_get(family.init(ast_encoder.FAMILY, config, jax.random.key(0)))
    folder = tmp_path_factory.mktemp("import") / "model"
    save_model_folder(folder, ImportedModel(layout=layout, config=config, variables=variables, files={}))
    return folder, config, variables


def test_an_import_is_loaded(imported):
    folder, config, variables = imported
    model = load_model(folder)
    assert model.config == config
    assert model.provenance.kind == "import"
    assert model.experiment is None
    jax.tree.map(np.testing.assert_array_equal, model.variables, dict(variables))


def test_an_import_needs_neither_the_loop_nor_orbax_nor_optax(imported):
    code = (
        f"import sys, alm_jax; alm_jax.from_pretrained({str(imported[0])!r})\n"
        "heavy = {'orbax.checkpoint', 'optax', 'tensorflow', 'alm_jax.training.loop', 'alm_jax.run.session'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
