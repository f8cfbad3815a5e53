"""Runs of two heads: what does not fit is said before anything is compiled; answers are judged as they should be."""

import dataclasses

import pytest

from alm_jax.cli.language_modeling import check, judge
from alm_jax.errors import UserError
from alm_jax.evaluation.answers import normalise
from alm_jax.run.experiment import load_config
from alm_jax.run.session import Session
from data_pipelines.datasets.synthetic_captions import SyntheticCaptionsConfig


@pytest.fixture(scope="module")
def config(request, tmp_path_factory):
    tiny = load_config(request.path.parent / "tiny_language_modeling.py")
    dataset = SyntheticCaptionsConfig(num_train=4, num_validation=2, num_test=3, clip_sec=1.5)
    data = dataclasses.replace(tiny.data, dataset=dataset, cache_dir=str(tmp_path_factory.mktemp("data")))
    training = dataclasses.replace(tiny.training, num_microbatches=1)
    return dataclasses.replace(tiny, data=data, training=training)


def with_language_model(config, **changes):
    model = config.objective.model
    model = dataclasses.replace(model, language_model=dataclasses.replace(model.language_model, **changes))
    return dataclasses.replace(config, objective=dataclasses.replace(config.objective, model=model))


def test_what_does_not_fit_is_said_before_anything_is_compiled(config):
    check(Session(config))
    silent = dataclasses.replace(config, data=dataclasses.replace(config.data, prompt=None))
    with pytest.raises(UserError, match=r"data\.prompt is not set"):
        check(Session(silent))
    with pytest.raises(UserError, match="language model 300"):
        check(Session(with_language_model(config, vocab_size=300)))
    with pytest.raises(
        UserError, match=r"audio \(8 vectors\), prompt \(up to 10 tokens\) and answer \(up to 12\)"
    ):
        check(Session(with_language_model(config, max_positions=29)))


def test_answers_are_judged_by_what_they_say(config):
    session = Session(config)
    split = session.data.split("test")
    captions = [split.captions(index) for index in range(3)]
    # Other words for the same events are right; those of another clip are not.
    assert judge(session, "test", [texts[-1] for texts in captions]) == {"answers/events_accuracy": 1.0}
    wrong = [captions[1][0], captions[1][0], "a sound"]
    assert judge(session, "test", wrong) == {"answers/events_accuracy": pytest.approx(1 / 3)}


def test_case_points_and_articles_do_not_matter():
    assert normalise("  The dog, barking. ") == normalise("a Dog barking") == "dog barking"
    assert normalise("a cat") != normalise("a dog")
