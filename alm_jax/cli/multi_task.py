"""How a run of several objectives over one trunk is measured and shown.

Every term's loss, retrieval by the embeddings, the captions that the decoder writes, and pictures where it draws.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from alm_jax import batch as contract
from alm_jax.cli.reconstructions import draw_pictures
from alm_jax.cli.run_page import write_run_page
from alm_jax.evaluation.embed import embed_text
from alm_jax.evaluation.masked_spectrogram import draw
from alm_jax.evaluation.metrics.retrieval import retrieval_metrics_of_embeddings
from alm_jax.evaluation.validation_loss import validation_metrics
from alm_jax.models.contrastive_captioner import autoencoder_variables
from alm_jax.objectives.multi_task import CaptioningTerm, ContrastiveTerm, MultiTaskConfig, capabilities_of
from alm_jax.run.session import Session
from alm_jax.training import sharding
from alm_jax.training.state import TrainState
from data_pipelines.config import MixtureConfig
from data_pipelines.datasets.synthetic_captions import SyntheticCaptionsConfig
from data_pipelines.synthesis import events_in
from data_pipelines.text import encode

NUM_CAPTIONS = 24
"""Written captions that the page shows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiTaskResult:
    """Figures of one evaluation, and the captions that were written."""

    metrics: dict[str, float | int]
    """Flat: ``n``, ``validation/loss`` and ``validation/<term>_loss``, ``retrieval/...``, and where
    sounds are composed of events ``answers/events_accuracy``."""
    captions: dict[int, str]
    """What the decoder writes of each recording, by its place in the split."""


def evaluate(session: Session, state: TrainState, split: str) -> MultiTaskResult:
    """Measures the state (averaged parameters where there are any) on a split; the same on every process."""
    config = _objective(session)
    variables = session.replicate(state.evaluation_variables)
    means = validation_metrics(session.objective, variables, session.evaluation_batches(split), session.place)
    metrics: dict[str, float | int] = {
        "n": len(session.data.split(split)),
        "validation/loss": sum(term.weight * means[f"{term.name}_loss"] for term in config.terms),
        **{
            f"validation/{name}": value
            for name, value in means.items()
            if name not in ("loss", "logit_scale")
        },
    }
    variables = session.replicate(session.model_variables(state))
    audio_emb, written = hear_split(session, variables, split)
    metrics |= retrieve(session, variables, split, audio_emb)
    written = {index: written[index] for index in counted(session, CaptioningTerm, split)}
    metrics |= judge(session, split, written)
    return MultiTaskResult(metrics=metrics, captions=written)


def counted(session: Session, kind: type, split: str) -> list[int]:
    """The recordings of a split, by their places in it, that the term of this kind counts."""
    sources = _objective(session).term(kind).sources
    found = session.data.split(split).source
    return np.flatnonzero(np.isin(found, sources) if sources else found >= 0).tolist()


def hear_split(
    session: Session, variables: dict[str, Any], split: str
) -> tuple[dict[int, np.ndarray], dict[int, str]]:
    """Embedding and written caption of each recording of a split, by its place in it."""
    tokenizer, length = session.data.tokenizer, session.config.data.tokenizer.max_length
    tokens, model = session.facts.tokens, capabilities_of(_objective(session))
    emb: dict[int, np.ndarray] = {}
    written: dict[int, str] = {}
    for batch in session.evaluation_batches(split):
        index, real = np.array(batch[contract.INDEX]), np.array(batch[contract.MASK])
        placed = session.place(
            {key: np.array(batch[key]) for key in (contract.AUDIO, contract.AUDIO_NUM_SAMPLES)}
        )
        made = model.generate_text(variables, placed, tokens, num_new_tokens=length - 1)
        embs, ids, mask = (
            sharding.fetch(x) for x in (model.embed_audio(variables, placed), made.ids, made.mask)
        )
        texts = tokenizer.decode_batch(
            [row[is_word].tolist() for row, is_word in zip(ids[real], mask[real], strict=True)]
        )
        emb |= dict(zip(index[real].tolist(), embs[real], strict=True))
        written |= dict(zip(index[real].tolist(), (text.strip() for text in texts), strict=True))
    return emb, written


def retrieve(
    session: Session, variables: dict[str, Any], split: str, audio_emb: dict[int, np.ndarray]
) -> dict[str, float | int]:
    """Retrieval among the recordings of a split that are contrasted, and all their captions."""
    data, length = session.data.split(split), session.config.data.tokenizer.max_length
    places, model = counted(session, ContrastiveTerm, split), capabilities_of(_objective(session))
    captions = [data.captions(index) for index in places]
    owner = np.repeat(np.arange(len(captions)), [len(own) for own in captions])

    def embed(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        placed = session.place({"ids": ids, "mask": mask})
        return sharding.fetch(model.embed_text(variables, placed["ids"], placed["mask"]))

    texts = encode(session.data.tokenizer, [caption for own in captions for caption in own], length)
    text_emb = embed_text(embed, *texts, session.eval_batch_size)
    audio = np.stack([audio_emb[index] for index in places]).astype(np.float32)
    return retrieval_metrics_of_embeddings(audio, text_emb, owner)


def judge(session: Session, split: str, written: dict[int, str]) -> dict[str, float]:
    """Share of the written captions that name the events of their sounds, all of them and no other.

    Of the recordings that are composed of such; nothing where none is.
    """
    data, dataset = session.data.split(split), session.config.data.dataset
    parts = [part.dataset for part in dataset.parts] if isinstance(dataset, MixtureConfig) else [dataset]
    is_right = [
        events_in(text) == events_in(data.captions(index)[0])
        for index, text in written.items()
        if isinstance(parts[data.source[index]], SyntheticCaptionsConfig)
    ]
    return {"answers/events_accuracy": float(np.mean(is_right))} if is_right else {}


def write_run_report(workdir: Path, session: Session, state: TrainState, result: MultiTaskResult) -> None:
    """Writes a run's last figures and its report page."""
    split = session.data.split(session.config.data.eval_split)
    shown = sorted(result.captions)[:NUM_CAPTIONS]
    write_run_page(
        workdir,
        session,
        state,
        result.metrics,
        written=[(split.ids[index], "", result.captions[index], split.captions(index)[0]) for index in shown],
        reconstructions=draw_clips(session, state),
    )


def draw_clips(session: Session, state: TrainState) -> dict[str, bytes] | None:
    """Pictures of what is drawn of some clips; None where the run draws nothing."""
    config = _objective(session)
    if config.model.patch_decoder is None:
        return None
    return draw_pictures(
        session,
        functools.partial(draw, config.reconstruction),
        autoencoder_variables(session.model_variables(state)["params"]),
        config.model.frontend,
        session.config.data.eval_split,
    )


def _objective(session: Session) -> MultiTaskConfig:
    config = session.config.objective
    assert isinstance(config, MultiTaskConfig)
    return config
