"""Retrieval whose nearest candidates are ranked again by a matching head (BLIP-2, arXiv 2301.12597, section 4.4)."""

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

from alm_jax import batch as contract
from alm_jax.evaluation.evaluator import Evaluation, Evaluator
from alm_jax.evaluation.evaluators.retrieval import retrieval_figures, similarity_of
from alm_jax.evaluation.metrics.reranking import rerank, reranked_metrics
from alm_jax.evaluation.model import EvaluatedModel, caption_owners
from alm_jax.evaluation.split import EvaluationSplit
from alm_jax.figures import Figure
from alm_jax.models.capabilities import AudioStates, EmbedsAudio, EmbedsText, MatchesPairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reranking(Evaluator):
    """Retrieval by similarity plus the logit of a match, among the nearest candidates of each query."""

    name: str = "reranked"
    num_candidates: int = 16
    """Number of candidates of each recording, and of each caption, that the matching head scores."""

    declared: ClassVar[tuple[Figure, ...]] = retrieval_figures(
        "ranked again by matching, ", "R@1 of the nearest, ranked again by matching", is_shown=False
    )

    def obstacle(self, model: EvaluatedModel, split: EvaluationSplit) -> str:
        """Needs a matching head beside vectors of recordings and texts."""
        if not model.can(EmbedsAudio, EmbedsText, MatchesPairs):
            return "the model has no matching head"
        return ""

    def evaluate(self, model: EvaluatedModel, split: EvaluationSplit) -> Evaluation:
        """Figures of all recordings of the split and all their captions."""
        audio = encode_split(model, split)
        similarity = similarity_of(model.embed_split(split).emb, model.embed_captions(split))
        ids, mask = split.tokenize([text for index in range(len(split)) for text in split.captions(index)])

        def match(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
            # As many pairs at a time as the program was compiled for; the last ones are repeated.
            size, logits = split.batch_size, []
            for start in range(0, len(rows), size):
                chosen = np.minimum(np.arange(start, start + size), len(rows) - 1)
                row, column = rows[chosen], columns[chosen]
                pairs = {
                    "states": audio.states[row],
                    "states_mask": audio.mask[row],
                    "ids": ids[column],
                    "mask": mask[column],
                }
                placed = model.place(pairs)
                states = AudioStates(placed["states"], placed["states_mask"])
                logits.append(model.run("match", states, placed["ids"], placed["mask"]))
            return np.concatenate(logits)[: len(rows)]

        scores = rerank(similarity, match, self.num_candidates)
        return Evaluation(reranked_metrics(*scores, caption_owners(split)))


def encode_split(model: EvaluatedModel, split: EvaluationSplit) -> Any:
    """Encodes the recordings of a split for the matching head, in their order, on the host."""
    found = []
    for batch in split.batches():
        real = batch[contract.MASK]
        placed = model.place({key: batch[key] for key in (contract.AUDIO, contract.AUDIO_NUM_SAMPLES)})
        found.append(jax.tree.map(lambda x, real=real: x[real], model.run("encode_states", placed)))
    whole: Any = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    return AudioStates(*whole)
