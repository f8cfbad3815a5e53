"""A config with a wrong value anywhere is refused before data, devices or a compiler are touched."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from alm_jax.cli.arguments import override
from alm_jax.errors import UserError
from alm_jax.ranges import Range, check_value, hints_of
from alm_jax.run.config_json import to_json
from alm_jax.run.experiment import check_experiment, load_config, read_experiment

ROOT = Path(__file__).parents[2]
FILES = [
    path
    for path in sorted((*(ROOT / "configs").glob("*.py"), *(ROOT / "tests").rglob("tiny_*.py")))
    if "def get_config" in path.read_text()
]
WRONG = {int: "12", float: "0.5", str: 7, bool: "yes"}


def places(value: Any, path: tuple = ()) -> list[tuple[tuple, str, str]]:
    """Where the objects of a config's JSON have fields: (path, type, field)."""
    if isinstance(value, list):
        return [place for index, item in enumerate(value) for place in places(item, (*path, index))]
    if not isinstance(value, dict):
        return []
    own = [(path, value["type"], name) for name in value if name not in ("type", "format")]
    return own + [place for name, item in value.items() for place in places(item, (*path, name))]


def changed(text: str, path: tuple, name: str, item: Any) -> Any:
    whole = json.loads(text)
    inner = whole
    for step in path:
        inner = inner[step]
    inner[name] = item
    return whole


@pytest.fixture(scope="module")
def fields() -> list[tuple[str, tuple, str, Any]]:
    """One place of every field of every config type that a config in this tree has: (config, path, field, value)."""
    found: dict[tuple[str, str], tuple[str, tuple, str, Any]] = {}
    for file in FILES:
        text = json.dumps(to_json(load_config(file)))
        for path, kind, name in places(json.loads(text)):
            inner = json.loads(text) if not path else _at(json.loads(text), path)
            found.setdefault((kind, name), (text, path, name, inner[name]))
    return list(found.values())


def _at(value: Any, path: tuple) -> Any:
    for step in path:
        value = value[step]
    return value


def refusal(text: str, path: tuple, name: str, wrong: Any) -> str | None:
    """What a reader says of the config with one field changed; None where it takes it."""
    try:
        read_experiment(changed(text, path, name, wrong))
    except UserError as error:
        return str(error)
    return None


def test_a_number_that_is_too_small_or_none_is_refused_in_every_field(fields):
    numbers = [one for one in fields if isinstance(one[3], int | float) and not isinstance(one[3], bool)]
    assert len(numbers) > 150
    for text, path, name, _ in numbers:
        # A mean of log-mel features has no bound.
        for wrong in (float("nan"), *(() if name == "mean" else (-2, -1e9))):
            assert name in (refusal(text, path, name, wrong) or "")


def test_a_value_of_another_type_is_refused_in_every_field(fields):
    assert len(fields) > 300
    for text, path, name, value in fields:
        wrong = {dict: 3, list: 3, type(None): {"type": "Nothing"}, **WRONG}[type(value)]
        assert refusal(text, path, name, wrong) is not None, (path, name, wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "seed is -1; it must be at least 0"),
        (["--training.batch-size", "0"], "training.batch_size is 0; it must be at least 1"),
        (["--training.batch-size", "-8"], "training.batch_size is -8"),
        (["--training.num-microbatches", "3"], "does not divide"),
        (["--eval-batch-size", "0"], "eval_batch_size is 0"),
        (["--optimizer.warmup-steps", "100"], "the warm-up must be shorter than the run"),
        (["--optimizer.peak-lr", "nan"], "optimizer.peak_lr is nan"),
        (
            ["--objective.model.audio.window-size", "0"],
            "objective.model.audio.window_size is 0; it must be at least 1",
        ),
    ],
)
def test_options_are_checked_before_anything_is_built(arguments, message):
    config = load_config(ROOT / "tests" / "cli" / "tiny_config.py")
    with pytest.raises(UserError, match=message):
        override(config, arguments, prog="alm pretrain")


def test_every_config_of_this_tree_is_in_range():
    for file in FILES:
        config = load_config(file)
        check_experiment(config)
        assert read_experiment(json.loads(json.dumps(to_json(config)))) == config


def test_a_field_may_declare_its_own_range():
    hint = hints_of(load_config(FILES[0]).training.__class__)["eval_every"]
    check_value(0, hint, "eval_every")
    with pytest.raises(UserError, match="eval_every is -1; it must be at least 0"):
        check_value(-1, hint, "eval_every")
    assert str(Range(0, 1, is_open=True)) == "from 0 to below 1"
    assert dataclasses.replace(Range(0), high=2).__contains__(2)


def test_what_parts_have_in_common_is_derived_after_the_options():
    config = load_config(ROOT / "tests" / "cli" / "tiny_config.py")
    tokenizer = dataclasses.replace(config.data.tokenizer, vocab_size=None)
    data = dataclasses.replace(config.data, source_sec=None, tokenizer=tokenizer)
    config = dataclasses.replace(config, data=data)
    found = override(config, ["--objective.model.frontend.clip.clip-sec", "0.75"], prog="alm pretrain")
    assert found.data.source_sec == 0.75
    assert found.data.tokenizer.vocab_size == config.objective.model.text.vocab_size
    assert override(found, ["--data.source-sec", "2"], prog="alm pretrain").data.source_sec == 2


def test_every_objective_says_how_many_words_its_model_has():
    for file in FILES:
        config = load_config(file)
        words = config.objective.num_words
        if words is not None and config.data.tokenizer.path is None:
            assert config.data.tokenizer.num_tokens <= words


@pytest.mark.parametrize(
    ("path", "name", "wrong", "message"),
    [
        (
            (),
            "type",
            ["ExperimentConfig"],
            r"config\.type is \['ExperimentConfig'\], expected the name of a type",
        ),
        (("data",), "type", {"a": 1}, r"config\.data\.type is {'a': 1}, expected the name"),
        (("data",), "type", "no_such_module:Data", "of the module no_such_module, which cannot be imported"),
        ((), "data", 3, "data is 3, expected an object; the file is damaged"),
        ((), "objective", ["x"], r"objective is \['x'\], expected an object"),
    ],
)
def test_what_is_no_object_where_one_belongs_is_refused(path, name, wrong, message):
    text = json.dumps(to_json(load_config(ROOT / "tests" / "cli" / "tiny_config.py")))
    whole = changed(text, path, name, wrong) | {"format": 1}
    with pytest.raises(UserError, match=message):
        read_experiment(whole)


def test_what_is_no_config_of_a_run_is_refused():
    for wrong in (None, 3, "x", [], {}):
        with pytest.raises(UserError, match=r"manifest\.json"):
            read_experiment(wrong, "manifest.json: config")
