"""Suites on a model that loads: the figures are those of the API on the same files, with their protocol."""

import json

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from tiny_towers import objective_config as objective_config
from tokenizers import Tokenizer, models, pre_tokenizers

from alm_jax.cli.main import dispatch
from alm_jax.evaluation.suites import FOLDS, SUITES
from alm_jax.models import two_towers
from alm_jax.run import evaluate_model as module
from alm_jax.run.load import Model, Provenance
from alm_jax.run.pretrained import PretrainedTwoTowers

CLASSES = ("dog", "rain", "sea_waves")
TEMPLATE = "this is {}"


@pytest.fixture(scope="module")
def loaded(objective_config):
    """Two towers with random weights and a tokenizer, as `load_model` returns them for a published model."""
    config = objective_config.model
    words = ["<pad>", "a", "dog", "rain", "sea", "waves", "This", "this", "is", "sound", "of", "."]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(pad_id=0, pad_token="<pad>")
    return Model(
        config=config,
        variables=jax.tree.map(np.asarray, two_towers.TWO_TOWERS.init(config, jax.random.key(0))),
        tokenizer=tokenizer,
        provenance=Provenance(kind="published", source="towers"),
    )


@pytest.fixture
def esc(tmp_path, rng, monkeypatch, loaded):
    """A folder in ESC-50's layout, three folds of six recordings; its cache lies beside it."""
    root = tmp_path / "esc"
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in (1, 2, 3):
        for number in range(6):
            target = number % len(CLASSES)
            name = f"{fold}-{number}-A-{target}.wav"
            tone = np.sin(np.arange(4000) * (0.1 + 0.5 * target)) * rng.uniform(0.1, 0.3)
            soundfile.write(root / "audio" / name, tone + rng.normal(size=4000) / 20, 8000)
            lines.append(f"{name},{fold},{target},{CLASSES[target]},True,{number},A")
    (root / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(module, "load_model", lambda source: loaded)
    monkeypatch.setattr(module, "enable_compilation_cache", lambda: None)
    return root


def measure(capsys, *args):
    assert dispatch(["evaluate", "towers", *map(str, args), "--json", "-"]) == 0
    return capsys.readouterr().out


def test_zero_shot_is_that_of_the_api_and_says_how_to_get_it_again(esc, loaded, tmp_path, capsys):
    args = ("--suite", "esc10", "--data", esc, "--template", TEMPLATE, "--out", tmp_path / "out")
    first = measure(capsys, *args)
    record = json.loads(first)
    towers = PretrainedTwoTowers(loaded.config, loaded.variables, loaded.tokenizer)
    files = sorted((esc / "audio").glob("*.wav"))
    found = towers.classify(files, CLASSES, templates=[TEMPLATE]).argmax(axis=1)
    expected = np.mean([int(file.stem[-1]) == index for file, index in zip(files, found, strict=True)])
    assert record["esc10/zero_shot/accuracy"] == pytest.approx(expected)
    assert record["esc10/zero_shot/accuracy/low"] <= expected <= record["esc10/zero_shot/accuracy/high"]
    scores = pq.read_table(tmp_path / "out" / "esc10" / "scores.parquet").to_pydict()
    right = {file.name: int(file.stem[-1]) == index for file, index in zip(files, found, strict=True)}
    assert dict(zip(scores["id"], scores["value"], strict=True)) == right
    assert set(scores["figure"]) == {"zero_shot/accuracy"}
    assert record["esc10/split"] == "fold1+fold2+fold3"
    assert (record["esc10/n"], record["esc10/prompts"], record["source"]) == (18, TEMPLATE, "towers")
    assert len(record["model"]) == len(record["esc10/data"]) == 64
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == record
    assert "zero-shot" in (tmp_path / "out" / "esc10" / "report.html").read_text()
    assert measure(capsys, *args) == first


def test_a_probe_leaves_each_split_out_in_turn(esc, capsys):
    pytest.importorskip("sklearn")
    record = json.loads(measure(capsys, "--suite", "esc10_probe", "--data", esc))
    accuracies = [record[f"esc10_probe/linear_probe_fold{fold}/accuracy"] for fold in (1, 2, 3)]
    assert "esc10_probe/linear_probe_fold4/accuracy" not in record
    # Tones of three frequencies are told apart by any encoder; chance is one third.
    assert min(accuracies) > 0.6
    name, (probe,) = SUITES["esc10_probe"].choose(FOLDS, "fold2")
    assert (name, probe.split, probe.fit_split) == ("fold2", "fold2", "fold1+fold3+fold4+fold5")


def test_what_cannot_be_measured_is_said_before_anything_is_loaded(esc, tmp_path, capsys):
    for args, message in (
        (
            ["evaluate", "m", "--suite", "esc51", "--data", str(esc)],
            "there is no suite 'esc51'; the suites are esc50",
        ),
        (["evaluate", "m", "--suite", "esc10"], "--suite needs --data"),
        (["evaluate", "m", "--data", str(esc)], "name one by --suite"),
        (["evaluate"], "which model is to be measured?"),
        (
            ["evaluate", "m", "--suite", "esc10", "--data", str(esc), "--split", "fold9"],
            "there is no split 'fold9'",
        ),
        (["evaluate", "m", "--suite", "clotho", "--data", str(esc)], "clotho_captions"),
        (["evaluate", "m", "--suite", "esc10", "--data", str(tmp_path / "gone")], "gone"),
    ):
        assert dispatch(args) == 2, args
        assert message in capsys.readouterr().err


def test_every_suite_is_listed(capsys):
    assert dispatch(["evaluate", "--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed and suite.about in printed for name, suite in SUITES.items())
