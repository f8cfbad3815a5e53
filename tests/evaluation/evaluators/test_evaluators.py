"""Every evaluator's figures equal formulas in NumPy or scikit-learn on models that know every answer."""

import numpy as np
import pytest
from fake_models import (
    AudioTable,
    FakeSplit,
    Labeller,
    Matcher,
    TowerTables,
    Writer,
    make_model,
    text_ids,
    unit_rows,
    word_tokenizer,
)
from scipy.stats import entropy
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from alm_jax.evaluation.evaluators.answers import Answers
from alm_jax.evaluation.evaluators.linear_probe import LinearProbe
from alm_jax.evaluation.evaluators.patch_labels import PatchLabels
from alm_jax.evaluation.evaluators.reconstruction import ReconstructionPictures
from alm_jax.evaluation.evaluators.reranking import Reranking
from alm_jax.evaluation.evaluators.retrieval import Retrieval
from alm_jax.evaluation.evaluators.units import Units
from alm_jax.evaluation.evaluators.zero_shot import ZeroShot

CAPTIONS = [[f"caption {i} {j}" for j in range(1 + i % 3)] for i in range(10)]
FLAT = [text for own in CAPTIONS for text in own]
OWNER = np.repeat(np.arange(10), [len(own) for own in CAPTIONS])


def two_towers(
    texts: list[str], num_clips: int = 10, seed: int = 0, **more: np.ndarray
) -> dict[str, np.ndarray]:
    return {
        "audio": unit_rows(seed, num_clips, 6),
        "text": unit_rows(seed + 1, len(texts), 6),
        "text_ids": np.stack([text_ids(text) for text in texts]),
        **more,
    }


def recalls(scores: np.ndarray, k: int) -> tuple[float, float]:
    """R@k of texts (columns) over audio, and of audio (rows) over texts, by sorting."""
    to_audio = np.argsort(-scores, axis=0)[:k]
    to_text = np.argsort(-scores, axis=1)[:, :k]
    return (
        float(np.mean([OWNER[m] in to_audio[:, m] for m in range(len(OWNER))])),
        float(np.mean([any(OWNER[m] == n for m in to_text[n]) for n in range(10)])),
    )


def test_retrieval():
    variables = two_towers(FLAT)
    found = Retrieval().evaluate(make_model(TowerTables(), variables), FakeSplit(CAPTIONS)).figures
    for k in (1, 5, 10):
        expected = recalls(variables["audio"] @ variables["text"].T, k)
        assert (found[f"text_to_audio/r@{k}"], found[f"audio_to_text/r@{k}"]) == pytest.approx(expected)
    assert found["chance_r@1"] == pytest.approx(0.1)


def test_retrieval_of_several_vectors_a_recording_takes_the_nearest():
    variables = two_towers(FLAT) | {"audio": unit_rows(5, 10, 3, 6)}
    scores = (variables["audio"] @ variables["text"].T).max(axis=1)
    found = Retrieval().evaluate(make_model(TowerTables(), variables), FakeSplit(CAPTIONS)).figures
    assert (found["text_to_audio/r@1"], found["audio_to_text/r@1"]) == pytest.approx(recalls(scores, 1))


def test_retrieval_among_some_parts_of_a_mixture_is_that_of_these_alone():
    variables, sources = two_towers(FLAT), [0, 1] * 5
    mixed = FakeSplit(CAPTIONS, sources=sources)
    found = Retrieval(sources=(1,)).evaluate(make_model(TowerTables(), variables), mixed).figures
    own = [CAPTIONS[i] for i in range(1, 10, 2)]
    rows = np.isin(OWNER, np.arange(1, 10, 2))
    part = two_towers([text for texts in own for text in texts], 5)
    part |= {"audio": variables["audio"][1::2], "text": variables["text"][rows]}
    assert found == Retrieval().evaluate(make_model(TowerTables(), part), FakeSplit(own)).figures
    assert found["chance_r@1"] == pytest.approx(0.2)


def test_reranking():
    logits = np.random.default_rng(3).standard_normal((10, len(FLAT))).astype(np.float32)
    variables = two_towers(FLAT, logits=logits)
    similarity = variables["audio"] @ variables["text"].T
    found = (
        Reranking(num_candidates=3).evaluate(make_model(Matcher(), variables), FakeSplit(CAPTIONS)).figures
    )
    by_text = np.argsort(-similarity, axis=0)[:3]
    best = [rows[np.argmax((similarity + logits)[rows, m])] for m, rows in enumerate(by_text.T)]
    assert found["text_to_audio/r@1"] == pytest.approx(np.mean(np.array(best) == OWNER))
    by_audio = np.argsort(-similarity, axis=1)[:, :3]
    best = [columns[np.argmax((similarity + logits)[n, columns])] for n, columns in enumerate(by_audio)]
    assert found["audio_to_text/r@1"] == pytest.approx(np.mean(OWNER[best] == np.arange(10)))


def test_zero_shot():
    names, templates = ["dog_bark", "rain", "sea"], ("{}", "a sound of {}")
    prompts = [template.format(name.replace("_", " ")) for name in names for template in templates]
    labels = np.arange(10) % 3
    split = FakeSplit(CAPTIONS, labels=labels, class_names=names)
    variables = two_towers(prompts)
    evaluation = ZeroShot(templates=templates).evaluate(make_model(TowerTables(), variables), split)
    classes = variables["text"].reshape(3, 2, 6).mean(axis=1)
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    predicted = np.argmax(variables["audio"] @ classes.T, axis=1)
    assert evaluation.figures["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    expected = balanced_accuracy_score(labels, predicted)
    assert evaluation.figures["mean_per_class_accuracy"] == pytest.approx(expected)
    assert evaluation.figures["chance"] == pytest.approx(1 / 3)
    (section,) = evaluation.sections()
    assert section.pictures[0].png.startswith(b"\x89PNG")


def test_linear_probe_and_its_untrained_baseline_once_a_run():
    rng = np.random.default_rng(0)
    train_labels, labels = np.arange(12) % 3, np.arange(9) % 3
    train = FakeSplit([["a"]] * 12, labels=train_labels, class_names="abc", name="train")
    split = FakeSplit([["a"]] * 9, labels=labels, class_names="abc", siblings={"train": train})
    tables = [rng.standard_normal((12, 5)).astype(np.float32) for _ in range(2)]
    drawn: list[int] = []

    def draw_untrained():
        drawn.append(1)
        return {"audio": tables[1]}

    kept: dict = {}
    for _ in range(2):
        model = make_model(
            AudioTable(), {"audio": tables[0]}, draw_untrained=draw_untrained, kept=kept, train_split="train"
        )
        found = LinearProbe().evaluate(model, split).figures
    assert len(drawn) == 1
    for name, table in (("accuracy", tables[0]), ("random_accuracy", tables[1])):
        scaler = StandardScaler().fit(table)
        probe = LogisticRegression(max_iter=5000).fit(scaler.transform(table), train_labels)
        assert found[name] == pytest.approx(probe.score(scaler.transform(table[:9]), labels))


def test_answers():
    tokenizer = word_tokenizer(["seven", "the", "eight.", "Nine"])
    written = [[2, 1, 0], [3, 2, 1], [4, 1, 0], [5, 9, 1]]
    right = [["seven"], ["seven"], ["eight", "8"], ["nine"]]
    split = FakeSplit(right, labels=[0, 0, 1, 2], class_names=["seven", "eight", "nine"])
    model = make_model(Writer(), {"ids": np.array(written, np.int32)}, tokenizer=tokenizer)
    evaluation = Answers().evaluate(model, split)
    # Articles, case and punctuation do not count; a unit beside the word does.
    assert evaluation.figures["accuracy"] == pytest.approx(3 / 4)
    assert evaluation.figures["exact_match"] == pytest.approx(1 / 4)
    assert evaluation.figures["chance"] == pytest.approx(1 / 3)
    table = evaluation.sections()[0].table
    assert [row[2] for row in table.rows] == ["seven", "the seven", "eight.", "Nine <3>"]
    assert table.rows[2][3] == "eight / 8"


def test_captions_of_composed_sounds_are_right_where_they_name_all_events():
    from data_pipelines.synthesis import events_in

    texts = ["a low tone", "a high tone then a low tone", "nothing of the kind", "a low tone"]
    right = ["a low tone", "a low tone", "a high tone", "a high tone"]
    words = sorted({word for text in texts for word in text.split()})
    tokenizer = word_tokenizer(words)
    ids = np.zeros((4, 8), np.int32)
    for row, text in enumerate(texts):
        own = [tokenizer.token_to_id(word) for word in text.split()]
        ids[row, : len(own)] = own
    split = FakeSplit([[text] for text in right], composed=True)
    split.data.config.tokenizer.max_length = 8
    model = make_model(Writer(), {"ids": ids}, tokenizer=tokenizer)
    found = Answers().evaluate(model, split).figures["events_accuracy"]
    expected = np.mean([events_in(text) == events_in(own) for text, own in zip(texts, right, strict=True)])
    assert found == pytest.approx(expected)


def test_labels_and_units():
    labels = np.random.default_rng(0).integers(0, 5, (10, 2, 3)).astype(np.int32)
    split, model = FakeSplit(CAPTIONS), make_model(Labeller(), {"labels": labels})
    counts = np.bincount(labels.ravel())
    evaluation = PatchLabels().evaluate(model, split)
    assert evaluation.figures["used"] == np.count_nonzero(counts)
    assert evaluation.figures["perplexity"] == pytest.approx(np.exp(entropy(counts)))
    assert evaluation.figures["most_frequent"] == pytest.approx(counts.max() / counts.sum())
    assert len(evaluation.sections()[0].pictures) == 6
    units = Units().evaluate(model, split)
    assert units.figures["per_clip"] == 6
    assert units.figures["used"] == np.count_nonzero(counts)
    assert units.figures["perplexity"] == pytest.approx(np.exp(entropy(counts)))
    assert units.sections()[0].table.rows[0][1] == " ".join(map(str, labels[0].ravel()))


def test_reconstructions_are_pictures_alone():
    evaluation = ReconstructionPictures().evaluate(make_model(Labeller(), {}), FakeSplit(CAPTIONS))
    assert evaluation.figures == {}
    assert [picture.description for picture in evaluation.sections()[0].pictures][:2] == [
        "clip-0: input, mask and reconstruction",
        "clip-1: input, mask and reconstruction",
    ]
