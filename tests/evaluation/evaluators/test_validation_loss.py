"""The validation loss is the mean of the loss that was trained, whichever that is."""

import jax.numpy as jnp
import numpy as np
import pytest
from fake_models import FakeSplit, TowerTables, make_model, text_ids

from alm_jax.evaluation.evaluators.loss import ValidationLoss, embed_negatives
from alm_jax.figures import Figure
from alm_jax.objectives.contrastive_losses import (
    HardNegativesConfig,
    InfoNceConfig,
    MultiPositiveConfig,
    SigmoidConfig,
    TauTemperature,
    contrastive_loss,
)
from alm_jax.objectives.objective import Inputs, Loss, Objective, PairLoss

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


class Pairs(FakeSplit):
    """Ten clips with their captions, labels and wrong captions, in batches of three, the last one padded."""

    def __init__(self, negatives):
        super().__init__(CAPTIONS, labels=LABELS, batch_size=3)
        self._negatives = negatives

    def negatives(self, index):
        return list(self._negatives[index])


def measure(loss) -> float:
    """``validation/loss`` of towers that know every embedding."""
    texts = [text for own in (*CAPTIONS, *NEGATIVES) for text in own]
    variables = {
        "audio": AUDIO,
        "text": np.stack([embedding(text) for text in texts]),
        "text_ids": np.stack([text_ids(text) for text in texts]),
    }

    def compute(params, audio_emb, text_emb, rows, negatives):
        return contrastive_loss(loss, SCALARS, audio_emb, text_emb, rows, negatives=negatives)[0]

    objective = make_objective(pair_loss=PairLoss("loss", compute))
    model = make_model(TowerTables(), variables, objective=objective, loss_batch_size=PAIRS)
    model.variables["params"] = {}
    split = Pairs(NEGATIVES if isinstance(loss, HardNegativesConfig) else [()] * CLIPS)
    figures = ValidationLoss().evaluate(model, split).figures
    assert set(figures) == {"loss"}
    return float(figures["loss"])


def make_objective(**parts) -> Objective:
    """Nothing but ``parts``, and an identity where one is needed."""
    fields = {"init": dict, "axes": dict, "prepare": dict, "encode": dict, "combine": dict, "project": dict}
    return Objective(**(fields | parts))


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
    assert embed_negatives(make_model(TowerTables(), {}), FakeSplit(CAPTIONS)) is None
    # A split without any is measured by the loss without negatives.
    pairs = jnp.asarray(AUDIO[:PAIRS], jnp.float32), jnp.asarray(TEXT[:PAIRS], jnp.float32)
    rows = {"mask": jnp.ones(PAIRS, bool)}
    found = contrastive_loss(HardNegativesConfig(), SCALARS, *pairs, rows)[0]
    assert found.sum == contrastive_loss(InfoNceConfig(), SCALARS, *pairs, rows)[0].sum


def test_other_losses_are_means_over_the_split_and_what_is_of_one_batch_is_left_out():
    """Four real rows of weights 1, 1, 3, 1 in batches of three; the padding rows would change every mean."""
    weights, values = np.array([1.0, 1.0, 3.0, 1.0]), np.array([2.0, 4.0, 1.0, 7.0])

    def sums(batch, value):
        row = batch["audio"][:, 0]
        weight = jnp.where(batch["mask"], jnp.asarray(weights)[row], 0.0)
        return Loss(jnp.sum(weight * jnp.asarray(value)[row]), jnp.sum(weight))

    objective = make_objective(
        prepare=lambda batch, key, *, train: Inputs(batch, None),
        encode=lambda variables, inputs, key, *, train: (inputs.rows, {}),
        combine=lambda params, outputs, batch, key: (
            sums(batch, values),
            {"accuracy": sums(batch, values / 10), "perplexity": sums(batch, values)},
        ),
        measure=lambda variables, batch: {"words": sums(batch, values * 2)},
        figures=(Figure(name="perplexity", label="of a batch", is_of_batch=True),),
    )
    variables = {"params": {}}
    model = make_model(None, {}, objective=objective, objective_variables=variables)
    found = ValidationLoss().evaluate(model, FakeSplit([["a"]] * 4, batch_size=3)).figures
    mean = np.average(values, weights=weights)
    assert found == pytest.approx({"loss": mean, "accuracy": mean / 10, "words": mean * 2})
