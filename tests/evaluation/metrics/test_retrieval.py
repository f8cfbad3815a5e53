"""Retrieval metrics against loops written from the definitions, scikit-learn and closed forms."""

from math import comb

import numpy as np
import pytest
from sklearn.metrics import label_ranking_average_precision_score, top_k_accuracy_score

from alm_jax.errors import DataError
from alm_jax.evaluation.metrics import retrieval
from alm_jax.evaluation.metrics.retrieval import rank_embeddings, retrieval_metrics

BOTH = ("text_to_audio", "audio_to_text")


def by_definition(similarity: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """The protocol, clip by clip and caption by caption, with Python's own stable sort."""
    s = similarity.astype(np.float64)
    num_clips, num_captions = s.shape
    text_ranks, text_precision = [], []
    for m in range(num_captions):
        order = sorted(range(num_clips), key=lambda n: -s[n, m])
        rank = order.index(owner[m])
        text_ranks.append(rank)
        text_precision.append(1 / (rank + 1) if rank < 10 else 0.0)
    audio_ranks, audio_precision = [], []
    for n in range(num_clips):
        order = sorted(range(num_captions), key=lambda m: -s[n, m])
        ranks = sorted(order.index(m) for m in range(num_captions) if owner[m] == n)
        audio_ranks.append(ranks[0])
        precisions = [i / (r + 1) if r < 10 else 0.0 for i, r in enumerate(ranks, start=1)]
        audio_precision.append(sum(precisions) / len(ranks))
    out = {}
    for way, ranks, precision in (
        ("text_to_audio", text_ranks, text_precision),
        ("audio_to_text", audio_ranks, audio_precision),
    ):
        for k in (1, 5, 10):
            out[f"{way}/r@{k}"] = sum(r < k for r in ranks) / len(ranks)
        out[f"{way}/map@10"] = sum(precision) / len(precision)
        out[f"{way}/median_rank"] = float(np.median(ranks)) + 1
        out[f"{way}/mean_rank"] = sum(ranks) / len(ranks) + 1
    return out


def noisy_case(seed: int, num_clips: int, captions: int | str) -> tuple[np.ndarray, np.ndarray]:
    """Similarities in which a clip's own captions tend to score higher; captions in no order."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 7, num_clips) if captions == "ragged" else np.full(num_clips, captions)
    owner = rng.permutation(np.repeat(np.arange(num_clips), counts))
    similarity = rng.normal(size=(num_clips, len(owner)))
    similarity[owner, np.arange(len(owner))] += 1.5
    return similarity.astype(np.float32), owner


@pytest.mark.parametrize(
    ("num_clips", "captions"), [(1, 1), (2, 1), (7, 1), (23, 5), (40, "ragged"), (12, 15)]
)
def test_equals_the_definition(num_clips: int, captions: int | str) -> None:
    similarity, owner = noisy_case(num_clips, num_clips, captions)
    metrics = retrieval_metrics(similarity, owner)
    expected = by_definition(similarity, owner)
    assert {k: metrics[k] for k in expected} == pytest.approx(expected, abs=1e-12)
    assert metrics["num_clips"] == num_clips
    assert metrics["num_captions"] == len(owner)


def test_equals_the_definition_where_scores_tie() -> None:
    # Similarities in five steps: nearly every rank is decided by the rule for ties.
    similarity, owner = noisy_case(3, 30, "ragged")
    similarity = np.round(similarity).clip(-1, 3)
    metrics = retrieval_metrics(similarity, owner)
    expected = by_definition(similarity, owner)
    assert {k: metrics[k] for k in expected} == pytest.approx(expected, abs=1e-12)


def test_equals_scikit_learn() -> None:
    similarity, owner = noisy_case(5, 50, 5)
    metrics = retrieval_metrics(similarity, owner)
    for k in (1, 5, 10):
        accuracy = top_k_accuracy_score(owner, similarity.T, k=k, labels=np.arange(50))
        assert metrics[f"text_to_audio/r@{k}"] == pytest.approx(accuracy, abs=1e-12)
    # Where nothing falls below rank 10 the cut does nothing: plain average precision.
    similarity, owner = noisy_case(6, 4, 2)
    relevant = owner[None, :] == np.arange(4)[:, None]
    precision = label_ranking_average_precision_score(relevant, similarity)
    assert retrieval_metrics(similarity, owner)["audio_to_text/map@10"] == pytest.approx(precision, abs=1e-12)


@pytest.mark.parametrize("way", BOTH)
def test_perfect_and_reversed(way: str) -> None:
    owner = np.repeat(np.arange(20), 5)
    similarity = (owner[None, :] == np.arange(20)[:, None]).astype(np.float32)
    perfect = retrieval_metrics(similarity, owner)
    for name in ("r@1", "r@5", "r@10", "map@10", "median_rank", "mean_rank"):
        assert perfect[f"{way}/{name}"] == 1.0
    worst = retrieval_metrics(-similarity, owner)
    for name in ("r@1", "r@5", "r@10", "map@10"):
        assert worst[f"{way}/{name}"] == 0.0
    assert worst[f"{way}/mean_rank"] == {"text_to_audio": 20, "audio_to_text": 96}[way]


@pytest.mark.parametrize("captions", [1, 5])
def test_a_constant_model_is_at_chance(captions: int) -> None:
    num_clips = 60
    owner = np.repeat(np.arange(num_clips), captions)
    metrics = retrieval_metrics(np.full((num_clips, len(owner)), 0.7, np.float32), owner)
    assert metrics["chance_r@1"] == 1 / num_clips
    for way in BOTH:
        assert metrics[f"{way}/r@1"] == pytest.approx(1 / num_clips)
        for k in (5, 10):
            assert metrics[f"{way}/r@{k}"] <= k / num_clips + 1e-12
    # In the direction with one right answer, stable order makes every recall exactly chance.
    assert metrics["text_to_audio/r@10"] == pytest.approx(10 / num_clips)


def test_with_one_caption_a_clip_map_is_the_mean_reciprocal_rank_cut_at_ten() -> None:
    similarity, _ = noisy_case(8, 80, 1)
    metrics = retrieval_metrics(similarity, np.arange(80))
    own = np.diagonal(similarity)
    for way, ranks in (
        ("text_to_audio", (similarity > own[None, :]).sum(0) + 1),
        ("audio_to_text", (similarity > own[:, None]).sum(1) + 1),
    ):
        reciprocal = np.where(ranks <= 10, 1 / ranks, 0).mean()
        assert metrics[f"{way}/map@10"] == pytest.approx(reciprocal, abs=1e-12)


def test_random_similarities_score_what_chance_says() -> None:
    num_clips, captions, draws = 40, 5, 60
    num_captions = num_clips * captions
    owner = np.repeat(np.arange(num_clips), captions)
    rng = np.random.default_rng(0)
    runs = [retrieval_metrics(rng.random((num_clips, num_captions)), owner) for _ in range(draws)]
    for k in (1, 5, 10):
        text = np.mean([m[f"text_to_audio/r@{k}"] for m in runs])
        audio = np.mean([m[f"audio_to_text/r@{k}"] for m in runs])
        chance_text = k / num_clips
        chance_audio = 1 - comb(num_captions - captions, k) / comb(num_captions, k)
        # Five standard errors of the mean of independent Bernoulli draws.
        assert abs(text - chance_text) < 5 * np.sqrt(chance_text / (draws * num_captions))
        assert abs(audio - chance_audio) < 5 * np.sqrt(chance_audio / (draws * num_clips))


def test_average_precision_sorts_the_ranks() -> None:
    # Own captions stand at ranks 2 and 0, in this order: (1/1 + 2/3) / 2, not (1/3 + 2/1) / 2 = 1.17.
    similarity = np.array([[0.1, 0.5, 0.9], [0.5, 0.9, 0.1]], np.float32)
    metrics = retrieval_metrics(similarity, np.array([0, 1, 0]))
    assert metrics["audio_to_text/map@10"] == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)


@pytest.mark.parametrize("block", [1, 37, 1 << 30])
def test_blocks_and_embeddings_change_nothing(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    rng = np.random.default_rng(2)
    owner = rng.permutation(np.repeat(np.arange(30), rng.integers(1, 5, 30)))
    audio_emb = rng.normal(size=(30, 16))
    text_emb = audio_emb[owner] + rng.normal(size=(len(owner), 16)) * 2
    expected = retrieval_metrics(audio_emb @ text_emb.T, owner)
    assert 0.05 < expected["audio_to_text/map@10"] < 0.95
    monkeypatch.setattr(retrieval, "BLOCK_SCORES", block)
    assert retrieval_metrics(audio_emb @ text_emb.T, owner) == expected
    assert rank_embeddings(audio_emb, text_emb, owner).figures() == expected


def test_the_order_of_captions_does_not_matter_and_their_owners_do() -> None:
    similarity, owner = noisy_case(9, 50, 5)
    expected = retrieval_metrics(similarity, owner)
    order = np.random.default_rng(1).permutation(len(owner))
    assert retrieval_metrics(similarity[:, order], owner[order]) == pytest.approx(expected, abs=1e-12)
    # The canary: give every clip another's audio, and the score falls to chance.
    shifted = retrieval_metrics(np.roll(similarity, 1, axis=0), owner)
    for way in BOTH:
        assert expected[f"{way}/r@1"] > 0.1 > shifted[f"{way}/r@1"]


def test_the_size_of_audiocaps() -> None:
    rng = np.random.default_rng(4)
    owner = np.repeat(np.arange(1000), 5)
    audio_emb = rng.normal(size=(1000, 32)).astype(np.float32)
    text_emb = (audio_emb[owner] + 3 * rng.normal(size=(5000, 32))).astype(np.float32)
    metrics = rank_embeddings(audio_emb, text_emb, owner).figures()
    own = audio_emb @ text_emb.T
    ranks = (own > own[owner, np.arange(5000)][None, :]).sum(axis=0)
    # The two products round differently, so a near-tie may swap: one caption in 5000 at the most here.
    assert metrics["text_to_audio/r@10"] == pytest.approx(np.mean(ranks < 10), abs=2.1e-4)


def test_input_that_has_no_answer() -> None:
    one = np.ones((1, 1), np.float32)
    with pytest.raises(DataError, match="got 0 and 0"):
        retrieval_metrics(np.zeros((0, 0), np.float32), np.zeros(0, np.int64))
    with pytest.raises(DataError, match=r"1 of 2 clips have no caption \(the first is clip 1\)"):
        retrieval_metrics(np.ones((2, 1), np.float32), np.array([0]))
    with pytest.raises(DataError, match="1 of 1 values of the similarity matrix are not finite"):
        retrieval_metrics(one * np.nan, np.array([0]))
    with pytest.raises(DataError, match="text embeddings are not finite"):
        rank_embeddings(one, one * np.inf, np.array([0]))
    with pytest.raises(ValueError, match="must lie in"):
        retrieval_metrics(one, np.array([1]))
