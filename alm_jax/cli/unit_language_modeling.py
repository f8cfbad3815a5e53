"""How a unit language model is measured and shown: losses, transcripts, units."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from alm_jax import batch as contract
from alm_jax.cli.run_page import write_run_page
from alm_jax.evaluation.unit_language_modeling import Transcript
from alm_jax.evaluation.units import describe_units
from alm_jax.evaluation.validation_loss import batch_metrics
from alm_jax.objectives.unit_language_modeling import (
    UnitLanguageModel,
    UnitLanguageModelingConfig,
    answer_loss,
    measured_tasks,
)
from alm_jax.run.session import Session
from alm_jax.training import sharding
from alm_jax.training.state import TrainState

NUM_SHOWN = 12
"""Recordings whose units and text are shown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitLanguageModelingResult:
    """Figures of one evaluation, and what was written."""

    metrics: dict[str, float | int]
    """Flat: ``n``, ``validation/loss`` (nats a token, of the tasks as they are trained), ``validation/word_loss`` (nats
    a token of the text, given the units), ``validation/bits_per_unit``, ``units/...`` (`describe_units`), and
    ``units_to_text/accuracy``, the share of texts that are written exactly."""
    transcripts: tuple[Transcript, ...]
    """Some recordings from all over the split."""


def _config(session: Session) -> UnitLanguageModelingConfig:
    config = session.config.objective
    assert isinstance(config, UnitLanguageModelingConfig)
    return config


def evaluate(session: Session, state: TrainState, split: str) -> UnitLanguageModelingResult:
    """Measures the state (averaged parameters where there are any) on a split; the same on every process."""
    config, source = _config(session), session.data.split(split)
    variables = session.replicate(state.evaluation_variables)
    merged = session.replicate(session.model_variables(state))
    tasks = {f"validation/{name}": task for name, task in measured_tasks(config).items()}
    tokens, model = session.facts.tokens, UnitLanguageModel(session.model)
    sums = {name: np.zeros(2) for name in ("validation/loss", *tasks)}
    shown = set(np.linspace(0, len(source) - 1, NUM_SHOWN).astype(int).tolist())
    all_units, transcripts, num_right = [], [], 0
    for batch in session.evaluation_batches(split):
        batch = {name: np.array(value) for name, value in batch.items()}
        placed = session.place(batch)
        sums["validation/loss"] += [
            float(x) for x in batch_metrics(session.objective, variables, placed)["loss"]
        ]
        for name, task in tasks.items():
            sums[name] += [float(x) for x in answer_loss(config, merged, placed, task)]
        written = model.generate_text(
            merged, placed, tokens, num_new_tokens=placed[contract.TEXT_IDS].shape[1]
        )
        units, said, ids, mask = map(
            sharding.fetch, (*model.encode_units(merged, placed), written.ids, written.mask)
        )
        for row in np.flatnonzero(batch[contract.MASK]):
            index = int(batch[contract.INDEX][row])
            transcript = Transcript(
                id=source.ids[index],
                units=tuple(units[row][said[row]].tolist()),
                written=_read(session, ids[row][mask[row]]),
                right=tuple(caption.strip() for caption in source.captions(index)),
            )
            num_right += transcript.is_right
            all_units.append(np.array(transcript.units, np.int32))
            if index in shown:
                transcripts.append(transcript)
    means = {name: float(total / max(weight, 1.0)) for name, (total, weight) in sums.items()}
    if "validation/bits_per_unit" in means:
        means["validation/bits_per_unit"] /= float(np.log(2))
    metrics = {"n": len(source), **means, **describe_units(all_units, session.model.units.num_units)}
    if config.tasks.units_to_text:
        metrics["units_to_text/accuracy"] = num_right / len(source)
    return UnitLanguageModelingResult(metrics=metrics, transcripts=tuple(transcripts))


def _read(session: Session, ids: Any) -> str:
    """Text of token ids; a unit is <number>."""
    first = session.model.vocabulary.num_words
    words = session.data.tokenizer.decode(
        [int(i) for i in ids if i < first], skip_special_tokens=True
    ).strip()
    return " ".join(filter(None, [words, *(f"<{i - first}>" for i in ids if i >= first)]))


def write_run_report(
    workdir: Path, session: Session, state: TrainState, result: UnitLanguageModelingResult
) -> None:
    """Writes a run's last figures and its report page, with the units of some recordings and what was made of them."""
    rows = [
        [shown.id, " ".join(map(str, shown.units)), shown.written, " / ".join(shown.right)]
        for shown in result.transcripts
    ]
    write_run_page(workdir, session, state, result.metrics, written=rows)
