"""How many written texts are right."""

import re
from collections.abc import Sequence

import numpy as np

from data_pipelines.synthesis import events_in


def normalise(answer: str) -> str:
    """An answer without case, punctuation, articles and needless spaces, as SQuAD's exact match has it."""
    words = re.sub(r"[^\w\s]", " ", answer.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def answer_accuracy(answers: Sequence[str], right: Sequence[Sequence[str]]) -> float:
    """Share of the answers that equal one of the right ones of their recording, both normalised."""
    pairs = zip(answers, right, strict=True)
    return float(np.mean([normalise(text) in {normalise(own) for own in texts} for text, texts in pairs]))


def exact_match(answers: Sequence[str], right: Sequence[Sequence[str]]) -> float:
    """Share of the answers that equal one of the right ones of their recording but for outer spaces."""
    pairs = zip(answers, right, strict=True)
    return float(np.mean([text.strip() in {own.strip() for own in texts} for text, texts in pairs]))


def events_accuracy(captions: Sequence[str], right: Sequence[str]) -> float:
    """Share of the captions that name the events of composed sounds as the right one does: all of them, no other."""
    pairs = zip(captions, right, strict=True)
    return float(np.mean([events_in(text) == events_in(own) for text, own in pairs]))
