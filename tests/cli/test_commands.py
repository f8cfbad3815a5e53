"""The command line as a user meets it: help, mistakes and their exit codes, and a whole run in one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from alm_jax.cli.main import COMMANDS, dispatch
from alm_jax.run.experiment import read_experiment
from alm_jax.run.workdir import locked
from alm_jax.training.metrics import read_metrics

CONFIG = Path(__file__).with_name("tiny_config.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("commands")


@pytest.fixture
def pretrain(folder):
    """Runs `alm pretrain` on the tiny config with some overrides; returns the exit code."""

    def run(*overrides: str, workdir: Path | None = None) -> int:
        own = ["--workdir", str(workdir or folder / "unused"), "--data.cache-dir", str(folder / "data")]
        return dispatch(["pretrain", str(CONFIG), *own, *overrides])

    return run


@pytest.fixture(scope="module")
def trained(folder):
    """A run of six steps."""
    workdir = folder / "run"
    options = ["--training.num-steps", "6", "--training.save-every", "3", "--training.eval-every", "4"]
    own = ["--workdir", str(workdir), "--data.cache-dir", str(folder / "data")]
    code = dispatch(["pretrain", str(CONFIG), *own, *options])
    assert code == 0
    return workdir


def test_help_names_every_command(capsys):
    assert dispatch(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(command in output for command in COMMANDS)


def test_a_misspelt_command_is_a_mistake(capsys):
    assert dispatch(["pretrian"]) == 2
    assert "no command 'pretrian'" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    try:
        code = dispatch([command, "--help"])
    except SystemExit as exit:
        code = exit.code
    assert code == 0
    assert f"alm {command}" in capsys.readouterr().out


def test_every_field_of_a_config_is_in_its_help(capsys):
    with pytest.raises(SystemExit) as exit:
        dispatch(["pretrain", str(CONFIG), "--help"])
    assert exit.value.code == 0
    output = capsys.readouterr().out
    assert "--optimizer.peak-lr" in output
    assert "Learning rate at the end of the warm-up" in output


def test_an_unknown_config_key_gets_a_suggestion(pretrain, capsys):
    assert pretrain("--optimizer.peak-rl", "1") == 2
    assert "--optimizer.peak-lr" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--training.batch-size", "12", "--training.mesh.data", "8"], "a batch of 12 does not divide"),
        (["--training.mesh.data", "3"], "does not fit 8 device"),
        (["--training.mesh.data", "three"], "nothing was run"),
        (["--optimizer.warmup-steps", "100"], "the warm-up must be shorter"),
        (["--optimizer.frozen", "txet"], "matches no parameter"),
        (["--objective.model.text.vocab-size", "100"], "raise objective.model.text.vocab_size"),
        (["--data.eval-split", "tset"], "tset"),
        (["--objective.model.frontend.fmax-hz", "20000.0"], "fmax"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_found_before_anything_is_compiled(pretrain, capsys, overrides, words):
    overrides = ["--training.batch-size", "16", *overrides]
    assert pretrain(*overrides) == 2
    assert words in capsys.readouterr().err


def test_a_config_that_is_not_there(capsys):
    assert dispatch(["pretrain", "configs/nothing.py", "--workdir", "x"]) == 2
    assert "there is no config file" in capsys.readouterr().err


def test_a_workdir_must_be_named(capsys):
    assert dispatch(["pretrain", str(CONFIG)]) == 2
    assert "--workdir is missing" in capsys.readouterr().err


def test_a_run_leaves_what_it_says(trained):
    records = read_metrics(trained / "metrics.jsonl")
    steps = [record["step"] for record in records if "loss" in record]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in records if "validation/loss" in record] == [4, 6]
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == ["3", "6"]
    assert "<html" in (trained / "report.html").read_text()
    assert read_experiment(json.loads((trained / "config.json").read_text())).training.num_steps == 6


def test_evaluate_prints_one_flat_object(trained, capsys):
    assert dispatch(["evaluate", str(trained), "--json", "-"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["n"] == 8
    assert metrics["step"] == 6
    assert 0 <= metrics["retrieval/text_to_audio/r@1"] <= 1
    assert all(isinstance(value, int | float | str) for value in metrics.values())
    last = json.loads((trained / "evaluation.json").read_text())
    assert last == metrics


def test_a_finished_run_has_nothing_left_to_do(trained, pretrain, capsys):
    before = (trained / "metrics.jsonl").read_bytes()
    options = ["--training.num-steps", "6", "--training.save-every", "3", "--training.eval-every", "4"]
    assert pretrain(*options, workdir=trained) == 0
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_another_config_in_the_same_folder_is_a_table(trained, pretrain, capsys):
    assert pretrain("--training.num-steps", "6", "--optimizer.peak-lr", "0.5", workdir=trained) == 2
    errors = capsys.readouterr().err
    assert "optimizer.peak_lr: 0.001 -> 0.5" in errors
    assert "save_every" not in errors
    # The checkpoints know their config too, should somebody remove the file.
    (trained / "config.json").rename(trained / "moved.json")
    assert pretrain("--training.num-steps", "6", "--optimizer.peak-lr", "0.5", workdir=trained) == 2
    assert "optimizer.peak_lr: 0.001 -> 0.5" in capsys.readouterr().err
    (trained / "moved.json").rename(trained / "config.json")


def test_a_folder_that_another_run_holds_is_refused(pretrain, tmp_path, capsys):
    with locked(tmp_path):
        assert pretrain(workdir=tmp_path) == 2
    assert f"in use by another run (process {os.getpid()}" in capsys.readouterr().err


def test_export_is_what_transformers_loads(trained, tmp_path, capsys):
    import torch
    import transformers

    out = tmp_path / "exported"
    assert dispatch(["export", str(trained), "--out", str(out), "--format", "transformers"]) == 0
    stated = float(capsys.readouterr().out.split("real recordings:")[1].split()[0])
    assert stated < 1e-4

    import alm_jax

    ours = alm_jax.from_pretrained(out)
    rng = np.random.default_rng(0)
    # Eight bits of noise, exactly representable: both sides see the very same samples.
    waveform = (rng.integers(-8000, 8000, 20_000) / 32768).astype(np.float32)
    soundfile.write(tmp_path / "noise.wav", waveform, 16000, subtype="PCM_16")
    texts = ["a loud high tone", "soft noise"]
    from_file = ours.embed_audio([tmp_path / "noise.wav"])
    np.testing.assert_array_equal(from_file, ours.embed_audio([waveform], sample_rate_hz=16000))
    logits = ours.logit_scale * from_file @ ours.embed_text(texts).T

    model = transformers.ClapModel.from_pretrained(out).eval()
    processor = transformers.ClapProcessor.from_pretrained(out)
    clip = 16000
    start = (len(waveform) - clip) // 2
    inputs = processor(
        text=texts,
        audio=[waveform[start : start + clip]],
        sampling_rate=16000,
        return_tensors="pt",
        padding=True,
    )
    with torch.no_grad():
        expected = model(**inputs).logits_per_audio.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_a_run_becomes_programs(trained, tmp_path, capsys):
    out = tmp_path / "programs"
    assert dispatch(["export", str(trained), "--out", str(out), "--format", "stablehlo"]) == 0
    written = {path.name for path in out.iterdir()}
    assert written == {"audio.stablehlo", "text.stablehlo", "signature.json", "tokenizer.json"}
    assert "audio.stablehlo, signature.json, text.stablehlo, tokenizer.json" in capsys.readouterr().out
    assert json.loads((out / "signature.json").read_text())["sample_rate_hz"] == 16000


def test_an_export_without_pytorch_says_that_it_was_not_compared(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("alm_jax.run.export.importlib.util.find_spec", lambda name: None)
    assert dispatch(["export", str(trained), "--out", str(tmp_path / "exported")]) == 0
    assert "not compared with transformers ([torch] extra)" in capsys.readouterr().out


def test_evaluating_what_is_no_run(tmp_path, capsys):
    assert dispatch(["evaluate", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_help_is_quick():
    """Half a second is promised; what it loads decides it: 91 modules, the interpreter's own included."""
    code = "from alm_jax.cli.main import dispatch; dispatch(['--help']); import sys; print(len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout.split()[-1]) < 200
