"""Evaluator of generated text: answers or captions by greedy decoding, and the share of them that is right."""

import dataclasses
from typing import ClassVar

import numpy as np

from alm_jax import batch as contract
from alm_jax.evaluation.evaluator import Evaluation, Evaluator
from alm_jax.evaluation.metrics.answers import answer_accuracy, events_accuracy, exact_match
from alm_jax.evaluation.model import EvaluatedModel
from alm_jax.evaluation.report.sections import Section, Table
from alm_jax.evaluation.split import EvaluationSplit
from alm_jax.figures import Figure
from alm_jax.models.capabilities import GeneratesText

NUM_WRITTEN = 24
"""Number of recordings whose texts are shown."""
PANEL = "What is written of held-out clips"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers(Evaluator):
    """Compares answers or captions that a model generates with the captions of the recordings."""

    name: str = "answers"
    sources: tuple[int, ...] = ()
    """Parts of a mixture, by position, whose recordings are used; empty: those that the objective captions, or
    all."""

    declared: ClassVar[tuple[Figure, ...]] = (
        Figure(
            name="accuracy",
            label="right answers",
            panel=PANEL,
            is_share=True,
            chance="chance",
            is_higher_better=True,
            is_headline=True,
            is_shown=True,
        ),
        Figure(
            name="events_accuracy",
            label="captions of the right events",
            panel=PANEL,
            is_share=True,
            is_higher_better=True,
            is_headline=True,
            is_shown=True,
        ),
        Figure(name="exact_match", label="texts written exactly", is_share=True, is_higher_better=True),
        Figure(name="chance", label="right answers by chance", is_share=True),
    )

    def obstacle(self, model: EvaluatedModel, split: EvaluationSplit) -> str:
        """Needs a model that generates text."""
        return "" if model.can(GeneratesText) else "the model writes no text"

    def evaluate(self, model: EvaluatedModel, split: EvaluationSplit) -> Evaluation:
        """``accuracy`` of recordings with classes, ``events_accuracy`` of composed sounds, ``exact_match`` of all."""
        rows = split.rows_of(self.sources or model.default_sources(self.name))
        every = write_split(model, split)
        written = [every[row] for row in rows]
        right = [split.captions(int(row)) for row in rows]
        figures: dict[str, float] = {"exact_match": exact_match(written, right)}
        if split.has_classes:
            figures |= {"accuracy": answer_accuracy(written, right), "chance": 1 / len(split.class_names)}
        composed = [place for place, row in enumerate(rows) if split.is_composed(int(row))]
        if composed:
            figures["events_accuracy"] = events_accuracy(
                [written[place] for place in composed], [right[place][0] for place in composed]
            )

        def sections() -> list[Section]:
            shown = np.unique(np.linspace(0, len(rows) - 1, NUM_WRITTEN).astype(int))
            table = Table(
                ("clip", "asked", "written", "right"),
                [
                    (
                        split.id(int(rows[place])),
                        split.question(int(rows[place])) or "–",
                        written[place],
                        " / ".join(right[place][:2]),
                    )
                    for place in shown
                ],
            )
            return [Section(heading="What the model writes", table=table)]

        return Evaluation(figures, sections)


def write_split(model: EvaluatedModel, split: EvaluationSplit) -> list[str]:
    """Generates the text about each recording of a split, in its order."""
    tokens = model.tokens
    length = split.data.config.tokenizer.max_length - len(tokens.begin)
    written: list[str] = []
    for batch in split.batches():
        made = model.run("generate_text", model.place(batch), tokens=tokens, num_new_tokens=length)
        real = batch[contract.MASK]
        for ids, is_word in zip(made.ids[real], made.mask[real], strict=True):
            written.append(read_ids(model, [int(i) for i in ids[is_word] if i not in tokens.end]))
    return written


def read_ids(model: EvaluatedModel, ids: list[int]) -> str:
    """The text of token ids; one that the tokenizer does not have, such as an audio unit, is ``<number>``."""
    num_words = model.tokenizer.get_vocab_size()
    text = model.tokenizer.decode([i for i in ids if i < num_words]).strip()
    return " ".join(filter(None, [text, *(f"<{i - num_words}>" for i in ids if i >= num_words)]))
