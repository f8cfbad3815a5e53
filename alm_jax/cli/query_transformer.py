"""How a run of a Q-Former is measured and shown: its losses, and retrieval by contrast and by matching."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from alm_jax import batch as contract
from alm_jax.cli.run_page import write_run_page
from alm_jax.evaluation.embed import embed_text
from alm_jax.evaluation.metrics.retrieval import retrieval_metrics
from alm_jax.evaluation.query_transformer import (
    rerank,
    reranked_metrics,
    similarity_of,
)
from alm_jax.evaluation.validation_loss import validation_metrics
from alm_jax.models.capabilities import AudioStates
from alm_jax.objectives.query_transformer import AudioQFormer
from alm_jax.run.session import Session
from alm_jax.training import sharding
from alm_jax.training.state import TrainState
from data_pipelines.text import encode

NUM_RERANKED = 16
"""Candidates of each clip, and of each caption, that the match head ranks again."""
NUM_PAIRS = 24
"""Pairs in the page's similarity matrix: as many as one can read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryTransformerResult:
    """Figures of one evaluation, and the similarities behind them."""

    metrics: dict[str, float | int]
    """Flat: ``n``, ``validation/loss`` and those of its parts, ``retrieval/...`` by contrast and ``reranked/...``."""
    similarity: np.ndarray
    """[N M] of clips and all captions."""
    caption_owner: np.ndarray
    """[M] position of each caption's recording."""


def evaluate(session: Session, state: TrainState, split: str) -> QueryTransformerResult:
    """Measures the state (averaged parameters where there are any) on a split; the same on every process."""
    variables = session.replicate(state.evaluation_variables)
    means = validation_metrics(session.objective, variables, session.evaluation_batches(split), session.place)
    variables = session.replicate(session.model_variables(state))
    model, data = AudioQFormer(session.model), session.data.split(split)
    query_emb, states = encode_split(session, variables, split)
    captions = [data.captions(index) for index in range(len(data))]
    owner = np.repeat(np.arange(len(captions)), [len(own) for own in captions])
    ids, mask = encode(
        session.data.tokenizer,
        [caption for own in captions for caption in own],
        session.config.data.tokenizer.max_length,
    )

    def embed(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        placed = session.place({"ids": ids, "mask": mask})
        return sharding.fetch(model.embed_text(variables, placed["ids"], placed["mask"]))

    similarity = similarity_of(query_emb, embed_text(embed, ids, mask, session.eval_batch_size))

    def match(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        # As many pairs at a time as the program was compiled for; the last ones are repeated.
        size, logits = session.eval_batch_size, []
        for start in range(0, len(rows), size):
            chosen = np.minimum(np.arange(start, start + size), len(rows) - 1)
            row, column = rows[chosen], columns[chosen]
            pairs = {
                "states": np.asarray(states.states)[row],
                "states_mask": np.asarray(states.mask)[row],
                "ids": ids[column],
                "mask": mask[column],
            }
            placed = session.place(pairs)
            audio = AudioStates(placed["states"], placed["states_mask"])
            logits.append(sharding.fetch(model.match(variables, audio, placed["ids"], placed["mask"])))
        return np.concatenate(logits)[: len(rows)]

    scores = rerank(similarity, match, NUM_RERANKED)
    metrics: dict[str, float | int] = {
        "n": len(data),
        **{f"validation/{name}": value for name, value in means.items() if name != "logit_scale"},
        **retrieval_metrics(similarity, owner),
        **reranked_metrics(*scores, owner),
    }
    return QueryTransformerResult(metrics=metrics, similarity=similarity, caption_owner=owner)


def encode_split(session: Session, variables: dict[str, Any], split: str) -> tuple[np.ndarray, AudioStates]:
    """The queries' vectors and the states of the recordings of a split, in their order, on the host."""
    model = AudioQFormer(session.model)
    found: list[Any] = []
    for batch in session.evaluation_batches(split):
        real = np.array(batch[contract.MASK])
        placed = session.place(
            {key: np.array(batch[key]) for key in (contract.AUDIO, contract.AUDIO_NUM_SAMPLES)}
        )
        made = (model.embed_audio(variables, placed), *model.encode_states(variables, placed))
        found.append([sharding.fetch(x)[real] for x in made])
    whole: Any = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    return whole[0], AudioStates(*whole[1:])


def write_run_report(
    workdir: Path, session: Session, state: TrainState, result: QueryTransformerResult
) -> None:
    """Writes a run's last figures and its report page."""
    split = session.data.split(session.config.data.eval_split)
    # Clips from all over the split, since neighbours are often of one class or one source.
    shown = np.unique(np.linspace(0, len(result.similarity) - 1, NUM_PAIRS).astype(int))
    first_caption = np.searchsorted(result.caption_owner, shown)
    write_run_page(
        workdir,
        session,
        state,
        result.metrics,
        similarity=result.similarity[np.ix_(shown, first_caption)],
        captions=[split.captions(int(index))[0] for index in shown],
        ids=[split.ids[int(index)] for index in shown],
    )
