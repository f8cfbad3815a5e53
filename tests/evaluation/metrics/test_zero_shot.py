"""Zero-shot classification against scikit-learn and closed forms."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix
from sklearn.preprocessing import normalize

from alm_jax.errors import DataError, UserError
from alm_jax.evaluation.metrics.zero_shot import (
    build_prompts,
    class_embeddings,
    confusion_matrix,
    zero_shot_metrics,
)


def make_case(num_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    class_emb = normalize(rng.normal(size=(num_classes, 12)))
    labels = rng.integers(0, num_classes, 200).astype(np.int32)
    audio_emb = normalize(class_emb[labels] + 0.5 * rng.normal(size=(200, 12)))
    return (
        audio_emb.astype(np.float32),
        class_emb.astype(np.float32),
        labels,
        [f"class_{c}" for c in range(num_classes)],
    )


@pytest.mark.parametrize("num_classes", [2, 5, 6, 20])
def test_equals_scikit_learn(num_classes: int) -> None:
    audio_emb, class_emb, labels, names = make_case(num_classes)
    scores = audio_emb.astype(np.float64) @ class_emb.astype(np.float64).T
    predictions = scores.argmax(axis=1)
    metrics = zero_shot_metrics(audio_emb, class_emb, labels, names)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, predictions), abs=1e-12)
    assert metrics["mean_per_class_accuracy"] == pytest.approx(
        balanced_accuracy_score(labels, predictions), abs=1e-12
    )
    assert ("top5_accuracy" in metrics) == (num_classes > 5)
    if num_classes > 5:
        top5 = top_k_accuracy_score(labels, scores, k=5, labels=np.arange(num_classes))
        assert metrics["top5_accuracy"] == pytest.approx(top5, abs=1e-12)
    counts = confusion_matrix(audio_emb, class_emb, labels)
    expected = sklearn_confusion_matrix(labels, predictions, labels=np.arange(num_classes))
    np.testing.assert_array_equal(counts, expected)
    assert metrics["num_clips"] == 200
    assert metrics["class_accuracy/class_0"] == pytest.approx(expected[0, 0] / expected[0].sum())


def test_a_class_without_clips_is_left_out_of_the_mean() -> None:
    emb = np.eye(3, dtype=np.float32)
    metrics = zero_shot_metrics(emb[[0, 0, 0, 0, 0]], emb, np.array([0, 0, 0, 1, 1]), ["a", "b", "c"])
    assert metrics["accuracy"] == 0.6
    assert metrics["mean_per_class_accuracy"] == 0.5
    assert "class_accuracy/c" not in metrics


def test_a_constant_model_is_at_chance() -> None:
    num_classes = 10
    labels = np.arange(40) % num_classes
    same = np.full((40, 4), 0.5, np.float32)
    metrics = zero_shot_metrics(same, same[:num_classes], labels, [str(c) for c in range(num_classes)])
    assert metrics["accuracy"] == metrics["chance"] == 0.1
    assert metrics["top5_accuracy"] == 0.5


def test_prompts() -> None:
    prompts = build_prompts(["dog", "crying_baby"], ["this is a sound of {}.", "{}"])
    assert prompts == ["this is a sound of dog.", "dog", "this is a sound of crying baby.", "crying baby"]
    # Only the one place is filled: neither braces in a name nor in a template are anything special.
    assert build_prompts(["{0}"], ["{a} {}"]) == ["{a} {0}"]
    with pytest.raises(UserError, match="got none"):
        build_prompts(["dog"], [])
    for template in ("a dog", "{} and {}"):
        with pytest.raises(UserError, match="it needs one"):
            build_prompts(["dog"], [template])


def test_class_embeddings_average_directions_not_lengths() -> None:
    # Directions 0 and 60 degrees, the first ten times as long: their mean direction is 30 degrees.
    prompts = np.array([[10.0, 0.0], [0.5, np.sqrt(0.75)], [0.0, 2.0], [0.0, 3.0]], np.float32)
    expected = [[np.sqrt(0.75), 0.5], [0.0, 1.0]]
    np.testing.assert_allclose(class_embeddings(prompts, 2), expected, atol=1e-6)
    with pytest.raises(ValueError, match="4 prompts do not divide among 3 classes"):
        class_embeddings(prompts, 3)


def test_input_that_has_no_answer() -> None:
    emb = np.eye(3, dtype=np.float32)
    names = ["a", "b", "c"]
    with pytest.raises(DataError, match="0 clips"):
        zero_shot_metrics(emb[:0], emb, np.zeros(0, np.int32), names)
    with pytest.raises(DataError, match=r"1 of 3 clips have a label outside 0\.\.2 \(clip 1: -1\)"):
        zero_shot_metrics(emb, emb, np.array([0, -1, 2]), names)
    with pytest.raises(DataError, match="label outside"):
        confusion_matrix(emb, emb, np.array([0, 3, 2]))
    with pytest.raises(DataError, match="audio embeddings are not finite"):
        zero_shot_metrics(emb * np.nan, emb, np.array([0, 1, 2]), names)
    with pytest.raises(ValueError, match="3 class embeddings for 2 class names"):
        zero_shot_metrics(emb, emb, np.array([0, 1, 1]), ["a", "b"])
