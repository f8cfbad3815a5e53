"""What a finished contrastive run leaves for people: ``evaluation.json`` and ``report.html``."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax import batch as contract
from alm_jax.cli.bands import band_centres_hz
from alm_jax.cli.two_towers import evaluation_set
from alm_jax.evaluation.contrastive import EvaluationResult, EvaluationSet
from alm_jax.evaluation.report import write_report
from alm_jax.objectives.recordings import one_clip
from alm_jax.ops.frontends import (
    ClapSpec,
    FrontendSpec,
    FusionSpec,
    TowerSpec,
    WaveformSpec,
)
from alm_jax.run.config_json import to_json
from alm_jax.run.session import Session
from alm_jax.run.workdir import EVALUATION
from alm_jax.training.metrics import METRICS_FILE
from alm_jax.training.state import TrainState

NUM_PAIRS = 24
"""Pairs in the similarity matrix: as many as one can read."""
NUM_CLIPS = 6
"""Clips that are shown with what the model retrieves for them."""
NUM_RETRIEVED = 3
"""Captions that are shown for a clip."""


def write_run_report(workdir: Path, session: Session, state: TrainState, result: EvaluationResult) -> None:
    """Writes a run's last figures and its report page."""
    config = session.config
    data = evaluation_set(session, config.data.eval_split)
    metrics = {"split": config.data.eval_split, "step": int(state.step), **result.metrics}
    (workdir / EVALUATION).write_text(json.dumps(metrics, indent=2) + "\n")

    # Clips from all over the split, since neighbours are often of one class or one source.
    shown = np.unique(np.linspace(0, len(result.audio_emb) - 1, NUM_PAIRS).astype(int))
    first_caption = np.searchsorted(result.caption_owner, shown)
    clips = shown[:: max(len(shown) // NUM_CLIPS, 1)][:NUM_CLIPS]
    # The clips with a spectrogram stand first.
    order = np.concatenate([np.flatnonzero(np.isin(shown, clips)), np.flatnonzero(~np.isin(shown, clips))])
    captions = [caption for group in data.captions for caption in group]
    frontend = picture_frontend(session.model.frontend)
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    write_report(
        workdir,
        title=config.name,
        summary={
            "parameters": f"{num_parameters / 1e6:.2f} M",
            "training": f"{int(state.step):,} steps of {config.training.batch_size} pairs",
            "data": f"{config.data.train_split} ({len(session.data.split(config.data.train_split)):,} clips)",
            "evaluated on": f"{config.data.eval_split} ({len(result.audio_emb):,} clips)",
        },
        config_text=json.dumps(to_json(config), indent=2),
        metrics_path=workdir / METRICS_FILE,
        evaluation=metrics,
        similarity=(result.audio_emb[shown] @ result.caption_emb[first_caption].T)[np.ix_(order, order)],
        captions=[captions[index] for index in first_caption[order]],
        ids=[data.ids[index] for index in shown[order]],
        features=clip_features(session, data, clips),
        frame_sec=frontend.hop_samples / frontend.sample_rate_hz,
        mel_frequencies_hz=band_centres_hz(frontend),
        retrieved=[best_captions(result, captions, int(index)) for index in clips],
        own_captions=[list(data.captions[index]) for index in clips],
        confusion=result.confusion,
        class_names=data.class_names,
    )


def best_captions(result: EvaluationResult, captions: list[str], index: int) -> list[str]:
    """The captions that lie nearest to a recording, best first, each wording once."""
    order = np.argsort(-(result.caption_emb @ result.audio_emb[index]), kind="stable")
    return list(dict.fromkeys(captions[m] for m in order))[:NUM_RETRIEVED]


def clip_features(session: Session, data: EvaluationSet, indices: np.ndarray) -> np.ndarray:
    """Log-mel features [k T F] in dB of some recordings of a split."""
    rows: dict[int, np.ndarray] = {}
    for batch in data.batches():
        wanted = [row for row in range(len(batch[contract.INDEX])) if batch[contract.INDEX][row] in indices]
        if wanted:
            given = {
                key: jnp.asarray(batch[key][wanted]) for key in (contract.AUDIO, contract.AUDIO_NUM_SAMPLES)
            }
            spec = picture_frontend(session.model.frontend)
            features = np.asarray(one_clip(spec, given, padding="heard").features)
            rows |= {
                int(batch[contract.INDEX][row]): feature
                for row, feature in zip(wanted, features, strict=True)
            }
    return np.stack([rows[int(index)] for index in indices])


def picture_frontend(frontend: TowerSpec) -> FrontendSpec:
    """A front-end whose features are a log-mel that people can look at: the model's own, where it is one."""
    if not isinstance(frontend, FusionSpec | WaveformSpec) and frontend.num_features == frontend.num_mels:
        return frontend
    rate_hz = frontend.sample_rate_hz
    return ClapSpec(
        sample_rate_hz=rate_hz,
        hop_samples=rate_hz // 100,
        fmax_hz=min(14000.0, rate_hz / 2),
        clip=frontend.clip,
    )
