"""Every objective trains from a config, continues to the last bit, and leaves its figures and its page."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.cli.main import dispatch
from alm_jax.encoders.families import family_of
from alm_jax.encoders.family import apply
from alm_jax.interop.safetensors_io import read_weights
from alm_jax.objectives import ObjectiveConfig
from alm_jax.objectives.contrastive import ContrastiveConfig
from alm_jax.objectives.language_modeling import LanguageModelingConfig
from alm_jax.objectives.masked_spectrogram import MaskedSpectrogramConfig
from alm_jax.run.experiment import load_config
from alm_jax.run.load import load_model, load_run
from alm_jax.run.workdir import CHECKPOINTS, EVALUATION
from alm_jax.training.metrics import METRICS_FILE, read_metrics

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
    assert CONFIGS.keys() == set(ObjectiveConfig.kinds())


def kinds() -> list:
    """Contrastive runs are continued in test_resume.py too, by real processes."""
    return [
        pytest.param(kind, id=kind.__name__, marks=[pytest.mark.slow] * (kind is ContrastiveConfig))
        for kind in ObjectiveConfig.kinds()
    ]


@pytest.fixture
def run(folder, capsys):
    def run(kind: type, workdir: Path) -> None:
        own = ["--workdir", str(workdir), "--data.cache-dir", str(folder / "data")]
        assert dispatch(["pretrain", str(CONFIGS[kind]), *own, *STEPS]) == 0, capsys.readouterr().err

    return run


@pytest.fixture
def trained(folder, run):
    """A finished run of an objective, trained once."""

    def trained(kind: type) -> Path:
        workdir = folder / kind.__name__
        if not workdir.exists():
            run(kind, workdir)
        return workdir

    return trained


@pytest.mark.parametrize("kind", kinds())
def test_it_continues_to_the_last_bit(kind, folder, run, trained, capsys):
    whole, half = trained(kind), folder / f"{kind.__name__}-continued"
    found = losses(whole)
    assert list(found) == list(range(1, 9))
    assert np.isfinite(list(found.values())).all()
    # As a run leaves it that was killed before its second save.
    shutil.copytree(whole, half)
    for step in (half / CHECKPOINTS).glob("*8*"):
        shutil.rmtree(step)
    for leftover in (EVALUATION, "report.html"):
        (half / leftover).unlink()
    run(kind, half)
    assert "continuing after step 4" in capsys.readouterr().err
    assert losses(half) == found
    figures = json.loads((half / EVALUATION).read_text())
    assert figures == json.loads((whole / EVALUATION).read_text())
    assert np.isfinite(figures["validation/loss"])
    assert "</html>" in (half / "report.html").read_text()


def test_a_language_model_of_two_heads_is_exported_as_its_class(trained, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    workdir, out = trained(LanguageModelingConfig), tmp_path / "exported"
    assert dispatch(["export", str(workdir), "--part", "language_model", "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    ids = np.random.default_rng(0).integers(5, 300, (2, 9))
    model = transformers.GPT2LMHeadModel.from_pretrained(out).eval()
    with torch.no_grad():
        expected = model(torch.as_tensor(ids)).logits
    config = load_run(workdir).objective.model.language_model
    params = jax.tree.map(jnp.asarray, load_model(workdir).variables["params"]["language_model"])
    logits = apply(family_of(config), config, {"params": params}, jnp.asarray(ids), jnp.ones(ids.shape, bool))
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_a_masked_autoencoder_is_exported_under_its_published_names(trained, tmp_path, capsys):
    workdir, out = trained(MaskedSpectrogramConfig), tmp_path / "exported"
    assert dispatch(["export", str(workdir), "--out", str(out)]) == 0
    assert "(audio_mae)" in capsys.readouterr().out
    arrays = read_weights(out)
    kernel = load_model(workdir).variables["params"]["encoder"]["blocks"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(arrays["blocks.0.mlp.fc1.weight"], kernel[0].T)


def test_a_part_that_is_not_there_or_goes_by_no_published_name_is_a_mistake(trained, tmp_path, capsys):
    workdir, out = trained(LanguageModelingConfig), str(tmp_path / "exported")
    assert dispatch(["export", str(workdir), "--part", "decoder", "--out", out]) == 2
    assert "it has ['audio', 'connector', 'language_model']" in capsys.readouterr().err
    assert dispatch(["export", str(workdir), "--out", out]) == 2
    assert "no published layout holds this TwoHeadsConfig whole" in capsys.readouterr().err
