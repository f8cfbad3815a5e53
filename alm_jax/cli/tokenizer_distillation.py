"""How the training of an audio tokenizer is measured and shown: as masked prediction is, without a mask."""

import functools
from pathlib import Path

from alm_jax.cli.masked_prediction import LabelResult, measure, write_label_page
from alm_jax.models.distilled_tokenizer import DISTILLED_TOKENIZER
from alm_jax.run.session import Session
from alm_jax.training.state import TrainState


def evaluate(session: Session, state: TrainState, split: str) -> LabelResult:
    """Measures the state (averaged parameters where there are any) on a split; the same on every process."""
    return measure(session, state, split, init=functools.partial(DISTILLED_TOKENIZER.init, session.model))


def write_run_report(workdir: Path, session: Session, state: TrainState, result: LabelResult) -> None:
    """Writes a run's last figures and its report page."""
    write_label_page(workdir, session, state, result)
