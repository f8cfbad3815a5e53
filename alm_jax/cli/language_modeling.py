"""How a run of two heads is measured and shown: loss, tokens, and what it writes of recordings."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from alm_jax import batch as contract
from alm_jax.cli.run_page import write_run_page
from alm_jax.errors import UserError
from alm_jax.evaluation.answers import normalise
from alm_jax.evaluation.validation_loss import validation_loss
from alm_jax.objectives.language_modeling import measure_tokens, write_answers
from alm_jax.run.session import Session
from alm_jax.training import sharding
from alm_jax.training.state import TrainState
from data_pipelines.config import PromptConfig
from data_pipelines.datasets.synthetic_captions import SyntheticCaptionsConfig
from data_pipelines.prompts import answer_end_id
from data_pipelines.synthesis import events_in
from data_pipelines.text import pad_id

NUM_WRITTEN = 16
"""Recordings whose answers are shown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelingResult:
    """Figures of one evaluation, and what was written."""

    metrics: dict[str, float | int]
    """Flat: ``n``, ``validation/loss``, ``validation/token_accuracy``; ``answers/accuracy`` where recordings have
    classes, ``answers/events_accuracy`` where they are composed of events."""
    answers: tuple[str, ...]
    """One a recording, in the order of the split."""


def prompt_of(session: Session) -> PromptConfig:
    """What is asked. Raises UserError where nothing says how."""
    prompt = session.config.data.prompt
    if prompt is None:
        raise UserError(
            "data.prompt is not set, and language modelling puts a prompt before its answers: say what is asked, "
            "PromptConfig(template='plain') for nothing but the audio"
        )
    return prompt


def evaluate(session: Session, state: TrainState, split: str) -> LanguageModelingResult:
    """Measures the state (averaged parameters where there are any) on a split; the same on every process."""
    loss = validation_loss(
        session.objective,
        session.replicate(state.evaluation_variables),
        session.evaluation_batches(split),
        session.place,
    )
    variables = session.replicate(session.model_variables(state))
    right_tokens = num_tokens = 0.0
    answers: list[str] = []
    for batch in placed_batches(session, split):
        found = measure_tokens(session.model, variables, batch)["token_accuracy"]
        right_tokens, num_tokens = right_tokens + float(found[0]), num_tokens + float(found[1])
        answers += answer(session, variables, batch)
    metrics: dict[str, float | int] = {
        "n": len(answers),
        "validation/loss": loss,
        "validation/token_accuracy": right_tokens / max(num_tokens, 1.0),
    }
    metrics |= judge(session, split, answers)
    return LanguageModelingResult(metrics=metrics, answers=tuple(answers))


def placed_batches(session: Session, split: str) -> Iterator[dict[str, Any]]:
    """A split's batches on the devices."""
    for batch in session.evaluation_batches(split):
        yield session.place({key: np.array(value) for key, value in batch.items()})


def answer(session: Session, variables: dict[str, Any], batch: dict[str, Any]) -> list[str]:
    """What the model writes of the real rows of a batch."""
    tokenizer, data = session.data.tokenizer, session.config.data
    end_id = answer_end_id(tokenizer, prompt_of(session).template)
    written = write_answers(
        session.model,
        variables,
        batch,
        num_new_tokens=data.tokenizer.max_length,
        end_id=end_id,
        pad_id=pad_id(tokenizer),
    )
    ids, mask, real = (sharding.fetch(x) for x in (written.ids, written.mask, batch[contract.MASK]))
    rows = [
        row[is_word & (row != end_id)].tolist() for row, is_word in zip(ids[real], mask[real], strict=True)
    ]
    return [text.strip() for text in tokenizer.decode_batch(rows)]


def judge(session: Session, split: str, answers: list[str]) -> dict[str, float]:
    """How many answers are right: equal to one of a recording's own where it has a class, of the same events where
    sounds are composed of such; nothing where neither can be told."""
    data, figures = session.data.split(split), {}
    if (data.labels >= 0).all():
        is_right = [
            normalise(text) in {normalise(own) for own in data.captions(index)}
            for index, text in enumerate(answers)
        ]
        figures["answers/accuracy"] = float(np.mean(is_right))
        figures["answers/chance"] = 1 / len(session.data.class_names)
    if isinstance(session.config.data.dataset, SyntheticCaptionsConfig):
        is_right = [
            events_in(text) == events_in(data.captions(index)[0]) for index, text in enumerate(answers)
        ]
        figures["answers/events_accuracy"] = float(np.mean(is_right))
    return figures


def write_run_report(
    workdir: Path, session: Session, state: TrainState, result: LanguageModelingResult
) -> None:
    """Writes a run's last figures and its report page, with answers from all over the split."""
    split = session.data.split(session.config.data.eval_split)
    shown = np.unique(np.linspace(0, len(result.answers) - 1, NUM_WRITTEN).astype(int))
    question = prompt_of(session).questions[0]
    written = [
        (split.ids[index], question or "–", result.answers[index], " / ".join(split.captions(int(index))[:2]))
        for index in shown
    ]
    write_run_page(workdir, session, state, result.metrics, written=written)
