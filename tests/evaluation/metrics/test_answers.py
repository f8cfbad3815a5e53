"""Answers are judged by what they say."""

import numpy as np
import pytest

from alm_jax.evaluation.metrics.answers import answer_accuracy, events_accuracy, exact_match, normalise
from data_pipelines.synthesis import all_compositions, describe, events_in


def test_case_points_and_articles_do_not_matter():
    assert normalise("  The dog, barking. ") == normalise("a Dog barking") == "dog barking"
    assert normalise("a cat") != normalise("a dog")


def test_any_right_answer_of_the_recording_counts():
    right = [["seven", "7"], ["eight"], ["nine"]]
    assert answer_accuracy(["7.", "Eight", "eight"], right) == pytest.approx(2 / 3)
    assert exact_match(["7.", " eight ", "eight"], right) == pytest.approx(1 / 3)


def test_other_words_for_the_same_events_are_right():
    compositions = all_compositions()[::97][:3]
    captions = [describe(one, np.random.default_rng(i), 4) for i, one in enumerate(compositions)]
    assert all(events_in(text) for texts in captions for text in texts)
    assert events_accuracy([texts[-1] for texts in captions], [texts[0] for texts in captions]) == 1.0
    wrong = [captions[1][0], captions[1][0], "a sound"]
    assert events_accuracy(wrong, [texts[0] for texts in captions]) == pytest.approx(1 / 3)
