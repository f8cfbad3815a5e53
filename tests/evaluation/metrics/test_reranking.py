"""Retrieval by the nearest query, and the first candidates ranked again by a matcher."""

import numpy as np
import pytest

from alm_jax.evaluation.evaluators.retrieval import similarity_of
from alm_jax.evaluation.metrics.reranking import rerank, reranked_metrics

SIMILARITY = np.random.default_rng(0).uniform(-1, 1, (5, 8)).astype(np.float32)
LOGITS = np.random.default_rng(1).normal(0, 10, SIMILARITY.shape).astype(np.float32)


def test_similarity_is_that_of_the_nearest_query(rng):
    query, text = rng.normal(size=(4, 3, 6)), rng.normal(size=(7, 6))
    np.testing.assert_allclose(
        similarity_of(query, text), np.einsum("ike,je->ijk", query, text).max(-1), rtol=1e-12
    )


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_nearest_are_ranked_by_both_scores_and_stand_before_the_others(count):
    asked = []

    def match(rows, columns):
        asked.extend(zip(rows.tolist(), columns.tolist(), strict=True))
        return LOGITS[rows, columns]

    scores = rerank(SIMILARITY, match, count)
    assert len(asked) == len(set(asked))
    for found, similarity, logits in (
        (scores[0], SIMILARITY, LOGITS),
        (scores[1].T, SIMILARITY.T, LOGITS.T),
    ):
        for own, sim, logit in zip(found, similarity, logits, strict=True):
            first = np.argsort(-sim)[:count]
            rest = np.argsort(-sim)[count:]
            expected = [*first[np.argsort(-(sim + logit)[first])], *rest]
            np.testing.assert_array_equal(np.argsort(-own), expected)


def test_each_way_has_its_own_scores():
    """Perfect one way, hopeless the other."""
    right = np.eye(4, dtype=np.float32)
    found = reranked_metrics(right, -right, np.arange(4))
    assert found["audio_to_text/r@1"] == 1.0
    assert found["text_to_audio/r@1"] == 0.0
    assert {name.split("/")[0] for name in found} == {"audio_to_text", "text_to_audio"}
