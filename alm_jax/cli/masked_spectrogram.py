"""How a masked-spectrogram run is measured and shown: loss, linear probe, and pictures of what it draws."""

import dataclasses
import functools
from pathlib import Path

from alm_jax.cli.linear_probe import probe_encoder
from alm_jax.cli.reconstructions import draw_pictures
from alm_jax.cli.run_page import write_run_page
from alm_jax.evaluation.masked_spectrogram import draw
from alm_jax.evaluation.validation_loss import validation_loss
from alm_jax.models.masked_autoencoder import MASKED_AUTOENCODER
from alm_jax.objectives.masked_spectrogram import MaskedSpectrogramConfig
from alm_jax.run.session import Session
from alm_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedSpectrogramResult:
    """Figures of one evaluation."""

    metrics: dict[str, float | int]
    """Flat: ``n``, ``validation/loss``, and where clips have classes ``linear_probe/...``."""


def evaluate(session: Session, state: TrainState, split: str) -> MaskedSpectrogramResult:
    """Measures the state (averaged parameters where there are any) on a split; the same on every process."""
    variables = session.replicate(state.evaluation_variables)
    loss = validation_loss(session.objective, variables, session.evaluation_batches(split), session.place)
    probed = probe_encoder(
        session,
        state,
        split,
        embed=session.objective.capabilities(session.facts.tokens).embed_audio,
        init=functools.partial(MASKED_AUTOENCODER.init, session.model),
    )
    return MaskedSpectrogramResult(
        metrics={"n": len(session.data.split(split)), "validation/loss": loss, **probed}
    )


def write_run_report(
    workdir: Path, session: Session, state: TrainState, result: MaskedSpectrogramResult
) -> None:
    """Writes a run's last figures and its report page."""
    objective = session.config.objective
    assert isinstance(objective, MaskedSpectrogramConfig)
    pictures = draw_pictures(
        session,
        functools.partial(draw, objective),
        session.model_variables(state),
        objective.model.frontend,
        session.config.data.eval_split,
    )
    write_run_page(workdir, session, state, result.metrics, reconstructions=pictures)
