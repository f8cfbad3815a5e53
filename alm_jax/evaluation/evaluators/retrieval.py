"""Retrieval of recordings by captions and of captions by recordings, with several captions a recording."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from alm_jax.evaluation.clip_pictures import band_centres_hz, clip_features, picture_frontend
from alm_jax.evaluation.evaluator import Evaluation, Evaluator
from alm_jax.evaluation.metrics.retrieval import rank_embeddings, rank_similarity
from alm_jax.evaluation.model import EvaluatedModel, caption_owners
from alm_jax.evaluation.report import pictures
from alm_jax.evaluation.report.sections import Card, Picture, Section
from alm_jax.evaluation.split import EvaluationSplit
from alm_jax.figures import Figure
from alm_jax.models.capabilities import EmbedsAudio, EmbedsText

NUM_PAIRS = 24
"""Pairs in the similarity matrix: as many as one can read."""
NUM_CARDS = 6
"""Number of recordings shown with their retrieved captions."""
NUM_RETRIEVED = 3
"""Number of captions shown for a recording."""


def retrieval_figures(label: str, panel: str, *, is_shown: bool) -> tuple[Figure, ...]:
    """The declarations of retrieval's figures: ``label`` begins their labels, ``panel`` is their plot's title."""
    found: list[Figure] = []
    for way, arrow in (("text_to_audio", "text → audio"), ("audio_to_text", "audio → text")):
        for name, words in (("r@1", "R@1"), ("r@5", "R@5"), ("r@10", "R@10"), ("map@10", "mAP@10")):
            is_first = name == "r@1"
            found.append(
                Figure(
                    name=f"{way}/{name}",
                    label=f"{label}{words}, {arrow}",
                    panel=panel if is_first else "",
                    series=arrow,
                    is_share=True,
                    chance="chance_r@1" if is_first else "",
                    is_higher_better=True,
                    is_headline=is_first or name == "map@10",
                    is_shown=is_shown and is_first,
                )
            )
        for name in ("median_rank", "mean_rank"):
            words = name.replace("_", " ")
            found.append(
                Figure(name=f"{way}/{name}", label=f"{label}{words}, {arrow}", is_higher_better=False)
            )
    return (
        *found,
        Figure(name="chance_r@1", label=f"{label}R@1 by chance", is_share=True),
        Figure(name="num_clips", label=f"{label}number of recordings"),
        Figure(name="num_captions", label=f"{label}number of captions"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval(Evaluator):
    """R@1, 5, 10, mAP@10, median and mean rank both ways, by the similarity of embeddings."""

    name: str = "retrieval"
    sources: tuple[int, ...] = ()
    """Parts of a mixture, by position, whose recordings and captions are candidates; empty: those that the
    contrastive loss uses, or all."""

    declared: ClassVar[tuple[Figure, ...]] = retrieval_figures(
        "", "Retrieval R@1 on held-out pairs", is_shown=True
    )

    def obstacle(self, model: EvaluatedModel, split: EvaluationSplit) -> str:
        """Needs vectors of recordings and texts in one space."""
        if not model.can(EmbedsAudio, EmbedsText):
            return "the model does not embed recordings and texts in one space"
        return ""

    def evaluate(self, model: EvaluatedModel, split: EvaluationSplit) -> Evaluation:
        """Figures of all recordings of the split and all their captions."""
        rows = split.rows_of(self.sources or model.default_sources(self.name))
        columns = np.flatnonzero(np.isin(caption_owners(split), rows))
        owner = np.searchsorted(rows, caption_owners(split)[columns])
        audio_emb, text_emb = model.embed_split(split).emb[rows], model.embed_captions(split)[columns]
        if audio_emb.ndim == 2:
            ranks = rank_embeddings(audio_emb, text_emb, owner)
        else:
            ranks = rank_similarity(similarity_of(audio_emb, text_emb), owner)

        def sections() -> list[Section]:
            return [draw_retrieval(model, split, rows, audio_emb, text_emb, owner)]

        scores = {name: one._replace(owner=rows[one.owner]) for name, one in ranks.scores().items()}
        return Evaluation(ranks.figures(), sections, scores)


def similarity_of(audio_emb: np.ndarray, text_emb: np.ndarray) -> np.ndarray:
    """[N M] of audio [N E] or [N K E] and texts [M E]; of several vectors a recording the nearest counts."""
    if audio_emb.ndim == 2:
        return audio_emb @ text_emb.T
    return np.stack([np.max(vectors @ text_emb.T, axis=0) for vectors in audio_emb])


def draw_retrieval(
    model: EvaluatedModel,
    split: EvaluationSplit,
    rows: np.ndarray,
    audio_emb: np.ndarray,
    text_emb: np.ndarray,
    owner: np.ndarray,
) -> Section:
    """The similarities of some pairs, and some recordings with the captions that lie nearest.

    ``rows`` [N] are the places of the recordings in the split, ``owner`` [M] says which of the N a caption describes.
    """
    captions = [caption for row in rows for caption in split.captions(int(row))]
    # Recordings from all over the split, since neighbours are often of one class or one source.
    shown = np.unique(np.linspace(0, len(rows) - 1, NUM_PAIRS).astype(int))
    carded = shown[:: max(len(shown) // NUM_CARDS, 1)][:NUM_CARDS]
    # Those with a spectrogram stand first.
    shown = np.concatenate([carded, np.setdiff1d(shown, carded)])
    first_caption = np.searchsorted(owner, shown)
    own = [captions[index] for index in first_caption]
    similarity = similarity_of(audio_emb[shown], text_emb[first_caption])
    matrix = Picture(
        "similarity",
        pictures.draw_similarity(similarity, own),
        "Matrix of cosine similarities between held-out recordings and captions",
    )
    note = (
        "Each row is a held-out recording with its own caption; each column is a caption, by its number. The diagonal "
        "holds the true pairs"
        + (", but some recordings share a caption." if len(set(own)) < len(own) else ".")
    )
    frontend = picture_frontend(model.frontend)
    features = clip_features(model.frontend, split, rows[carded])
    found = [
        [
            (text, text in split.captions(int(rows[index])))
            for text in nearest_captions(audio_emb[index], text_emb, captions)
        ]
        for index in carded
    ]
    axes: dict[str, Any] = {
        "frame_sec": frontend.hop_samples / frontend.sample_rate_hz,
        "mel_frequencies_hz": band_centres_hz(frontend),
    }
    top_db = pictures.spectrogram_top(features)
    cards = [
        Card(
            Picture(
                f"clip_{place:02d}",
                pictures.draw_spectrogram(clip, top_db=top_db, **axes),
                f"Log-mel spectrogram of: {own[place]}",
            ),
            own[place],
            split.id(int(rows[index])),
            found[place],
        )
        for place, (index, clip) in enumerate(zip(carded, features, strict=True))
    ]
    overview = {
        "similarity": similarity,
        "captions": own,
        "features": features,
        "retrieved": found,
        **axes,
    }
    return Section(
        heading="Similarity of recordings and captions",
        note=note,
        pictures=(matrix,),
        cards=cards,
        overview=overview,
    )


def nearest_captions(audio_emb: np.ndarray, text_emb: np.ndarray, captions: list[str]) -> list[str]:
    """The captions that lie nearest to a recording, best first, each wording once."""
    order = np.argsort(-similarity_of(audio_emb[None], text_emb)[0], kind="stable")
    return list(dict.fromkeys(captions[index] for index in order))[:NUM_RETRIEVED]
