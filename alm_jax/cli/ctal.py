"""How a CTAL run is measured and shown: its losses, what a transcript gives, a linear probe, and pictures."""

import dataclasses
import functools
from pathlib import Path

from alm_jax.cli.linear_probe import probe_encoder
from alm_jax.cli.reconstructions import draw_pictures
from alm_jax.cli.run_page import write_run_page
from alm_jax.evaluation.ctal import draw
from alm_jax.evaluation.means import split_means
from alm_jax.evaluation.validation_loss import validation_loss
from alm_jax.models.ctal import CTAL
from alm_jax.objectives.ctal import CtalConfig, SpeechEncoder, measure_masked
from alm_jax.run.session import Session
from alm_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class CtalResult:
    """Figures of one evaluation."""

    metrics: dict[str, float | int]
    """Flat: ``n``, ``validation/loss``, ``masked_text/...``, ``masked_audio/...``, and where clips have classes
    ``linear_probe/...``."""


def evaluate(session: Session, state: TrainState, split: str) -> CtalResult:
    """Measures the state (averaged parameters where there are any) on a split; the same on every process.

    The linear probe's vectors have heard a text of one hidden word, the same for every clip: the words of a transcript
    would give its class away.
    """
    config, model = _config(session), session.model
    variables = session.replicate(session.model_variables(state))
    batches = functools.partial(session.evaluation_batches, split)
    loss = validation_loss(
        session.objective, session.replicate(state.evaluation_variables), batches(), session.place
    )
    masked = split_means(functools.partial(measure_masked, config, variables), batches(), session.place)

    embed = SpeechEncoder(config, session.facts.tokens).embed_audio
    probed = probe_encoder(session, state, split, embed=embed, init=functools.partial(CTAL.init, model))
    metrics: dict[str, float | int] = {"n": len(session.data.split(split)), "validation/loss": loss}
    return CtalResult(metrics=metrics | masked | probed)


def write_run_report(workdir: Path, session: Session, state: TrainState, result: CtalResult) -> None:
    """Writes a run's last figures and its report page."""
    config, split = _config(session), session.config.data.eval_split
    variables = session.model_variables(state)
    pictures = draw_pictures(
        session, functools.partial(draw, config), variables, config.model.frontend, split
    )
    write_run_page(workdir, session, state, result.metrics, reconstructions=pictures)


def _config(session: Session) -> CtalConfig:
    assert isinstance(session.config.objective, CtalConfig)
    return session.config.objective
