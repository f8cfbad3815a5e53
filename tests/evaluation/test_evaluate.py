"""Which evaluators take part, when, and that a split is encoded once."""

import dataclasses

import numpy as np
import pytest
from fake_models import AudioTable, FakeSplit, TowerTables, make_model, text_ids, unit_rows

from alm_jax.errors import UserError
from alm_jax.evaluation.evaluate import choose_evaluators, declared_figures, evaluate
from alm_jax.evaluation.evaluator import Evaluation, Evaluator
from alm_jax.evaluation.evaluators.answers import Answers
from alm_jax.evaluation.evaluators.retrieval import Retrieval
from alm_jax.evaluation.evaluators.zero_shot import ZeroShot

NAMES = ["dog", "rain"]
TEXTS = [f"This is a sound of {name}." for name in NAMES]
CAPTIONS = [[TEXTS[i % 2]] for i in range(6)]


def make_split() -> FakeSplit:
    return FakeSplit(CAPTIONS, labels=np.arange(6) % 2, class_names=NAMES)


def make_towers():
    variables = {
        "audio": unit_rows(0, 6, 4),
        "text": unit_rows(1, 2, 4),
        "text_ids": np.stack([text_ids(text) for text in TEXTS]),
    }
    return make_model(TowerTables(), variables)


def kinds_of(evaluators) -> set[str]:
    return {type(evaluator).__name__ for evaluator in evaluators}


def test_by_default_a_model_is_measured_by_what_it_can():
    split = make_split()
    assert kinds_of(choose_evaluators((), make_towers(), lambda _: split)) == {"Retrieval", "ZeroShot"}
    split = FakeSplit(CAPTIONS, labels=np.arange(6) % 2, class_names=NAMES, siblings={"train": make_split()})
    audio = make_model(AudioTable(), {"audio": unit_rows(0, 6, 4)}, train_split="train")
    assert kinds_of(choose_evaluators((), audio, lambda _: split)) == {"LinearProbe"}


def test_one_that_is_named_and_cannot_be_used_is_a_mistake():
    split = make_split()
    with pytest.raises(UserError, match=r"'answers' .Answers. cannot be used: the model writes no text"):
        choose_evaluators((Answers(),), make_towers(), lambda _: split)
    with pytest.raises(UserError, match="two evaluators are called 'retrieval'"):
        choose_evaluators((Retrieval(), Retrieval()), make_towers(), lambda _: split)


@pytest.mark.parametrize("fields", [{"name": ""}, {"name": "a/b"}, {"every": 0}])
def test_fields_are_checked(fields):
    with pytest.raises(UserError):
        Retrieval(**fields)
    with pytest.raises(UserError, match="exactly one"):
        ZeroShot(templates=("no place for the class",))


def test_a_split_is_encoded_once_and_figures_carry_their_evaluators_names():
    split = make_split()
    named = (Retrieval(), Retrieval(name="again"), ZeroShot())
    result = evaluate(named, make_towers(), lambda _: split)
    assert split.num_decoded == len(split)
    again = {key.replace("again/", "retrieval/"): v for key, v in result.figures.items() if "again/" in key}
    assert again == {key: v for key, v in result.figures.items() if key.startswith("retrieval/")}
    declared = declared_figures(named, make_towers())
    assert declared["again/text_to_audio/r@1"].chance == "again/chance_r@1"
    assert {key for key in result.figures if "class_accuracy" not in key and "num_" not in key} <= set(
        declared
    )
    (section,) = result.evaluations["zero_shot"].sections()
    assert section.heading == "Zero-shot classification"


def test_costly_evaluators_take_part_in_some_evaluations_and_in_the_last():
    split, named = make_split(), (Retrieval(every=2), ZeroShot())
    taken = [
        set(evaluate(named, make_towers(), lambda _: split, count=count).evaluations)
        for count in (1, 2, 3, None)
    ]
    assert taken == [{"zero_shot"}, {"retrieval", "zero_shot"}, {"zero_shot"}, {"retrieval", "zero_shot"}]


def test_an_evaluator_outside_the_package_is_known_once_it_is_defined():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class CountClips(Evaluator):
        """Counts."""

        name: str = "count"

        def evaluate(self, model, split):
            return Evaluation({"clips": len(split)})

    try:
        assert CountClips in Evaluator.kinds()
        split = make_split()
        found = evaluate((CountClips(),), make_towers(), lambda _: split)
        assert found.figures == {"count/clips": 6}
    finally:
        Evaluator._kinds.remove(CountClips)
