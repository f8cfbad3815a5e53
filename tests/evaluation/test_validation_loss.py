"""The validation loss is the mean of the loss that was trained, whichever that is."""

import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.evaluation import contrastive as evaluation
from alm_jax.evaluation.config import EvaluationConfig
from alm_jax.evaluation.contrastive import EvaluationSet, evaluate
from alm_jax.objectives.contrastive_losses import (
    HardNegativesConfig,
    InfoNceConfig,
    MultiPositiveConfig,
    SigmoidConfig,
    TauTemperature,
    contrastive_loss,
)

CLIPS, WIDTH, PAIRS = 10, 6, 4
LABELS = np.arange(CLIPS) % 3
NUM_NEGATIVES = [2, 0, 1, 2, 2, 1, 0, 2, 1, 2]
SCALE, BIAS = 5.0, -2.0
SCALARS = {
    "log_logit_scale": jnp.log(jnp.float32(SCALE)),
    "tau": jnp.float32(1 / SCALE),
    "logit_bias": jnp.float32(BIAS),
}


def embedding(text: str) -> np.ndarray:
    x = np.random.default_rng(list(text.encode())).standard_normal(WIDTH)
    return x / np.linalg.norm(x)


AUDIO = np.stack([embedding(f"audio {i}") for i in range(CLIPS)])
CAPTIONS = [[f"caption {i} {j}" for j in range(1 + i % 3)] for i in range(CLIPS)]
TEXT = np.stack([embedding(captions[0]) for captions in CAPTIONS])
NEGATIVES = [[f"wrong {i} {j}" for j in range(n)] for i, n in enumerate(NUM_NEGATIVES)]


def measure(loss) -> float:
    """``validation/loss`` of towers that know every embedding; batches of three clips, the last one padded."""
    known: list[str] = []

    def tokenize(texts):
        known.extend(texts)
        places = np.arange(len(known) - len(texts), len(known), dtype=np.int32)
        return places[:, None], np.ones((len(texts), 1), bool)

    def batches():
        for start in range(0, CLIPS, 3):
            rows = np.arange(start, start + 3)
            real = rows < CLIPS
            rows = np.minimum(rows, CLIPS - 1)
            yield {
                "index": np.where(real, rows, -1).astype(np.int32),
                "label": np.where(real, LABELS[rows], -1).astype(np.int32),
                "mask": real,
            }

    data = EvaluationSet(
        batches=batches,
        captions=CAPTIONS,
        negatives=NEGATIVES if isinstance(loss, HardNegativesConfig) else [()] * CLIPS,
        ids=[str(i) for i in range(CLIPS)],
        class_names=(),
        tokenize=tokenize,
    )
    result = evaluate(
        lambda batch: AUDIO[batch["index"]],
        lambda ids, mask: np.stack([embedding(known[i]) for i in ids[:, 0]]),
        lambda audio, text, rows, negatives: contrastive_loss(
            loss, SCALARS, audio, text, rows, negatives=negatives
        )[0],
        data,
        EvaluationConfig(batch_size=4),
        loss_batch_size=PAIRS,
    )
    return float(result.metrics["validation/loss"])


def log_sum_exp(x: np.ndarray, axis: int) -> np.ndarray:
    return np.log(np.exp(x).sum(axis))


def expected(loss) -> float:
    """The formulas in float64, over four pairs at a time."""
    total = 0.0
    for start in range(0, CLIPS, PAIRS):
        rows = slice(start, start + PAIRS)
        logits = SCALE * AUDIO[rows] @ TEXT[rows].T
        same = np.eye(len(logits), dtype=bool)
        if getattr(loss, "group", "none") == "label":
            same = LABELS[rows][:, None] == LABELS[rows]
        if isinstance(loss, SigmoidConfig):
            total += np.log1p(np.exp(-np.where(same, 1, -1) * (logits + BIAS))).sum()
            continue
        row_lse = log_sum_exp(logits, 1)
        if isinstance(loss, HardNegativesConfig):
            for place, texts in enumerate(NEGATIVES[rows]):
                own = [SCALE * AUDIO[start + place] @ embedding(text) for text in texts]
                row_lse[place] = np.log(np.exp(np.append(logits[place], own)).sum())
        by_row = row_lse - (logits * same).sum(1) / same.sum(1)
        by_col = log_sum_exp(logits, 0) - (logits * same).sum(0) / same.sum(0)
        total += (by_row + by_col).sum() / 2
    return total / CLIPS


@pytest.mark.parametrize(
    "loss",
    [
        InfoNceConfig(),
        InfoNceConfig(temperature=TauTemperature()),
        MultiPositiveConfig(group="label"),
        SigmoidConfig(),
        SigmoidConfig(group="label"),
        HardNegativesConfig(),
    ],
    ids=["infonce", "tau", "multi-positive", "sigmoid", "sigmoid by label", "hard negatives"],
)
def test_the_validation_loss_is_the_trained_one(loss):
    assert measure(loss) == pytest.approx(expected(loss), rel=2e-6)


def test_recordings_without_a_wrong_caption_have_no_negatives():
    assert evaluation.embed_negatives(lambda texts: np.zeros((len(texts), WIDTH)), [(), ()]) is None
    # A split without any is measured by the loss without negatives.
    pairs = jnp.asarray(AUDIO[:PAIRS], jnp.float32), jnp.asarray(TEXT[:PAIRS], jnp.float32)
    rows = {"mask": jnp.ones(PAIRS, bool)}
    found = contrastive_loss(HardNegativesConfig(), SCALARS, *pairs, rows)[0]
    assert found.sum == contrastive_loss(InfoNceConfig(), SCALARS, *pairs, rows)[0].sum
