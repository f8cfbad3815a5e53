"""The masked-prediction objective: its formula, exact in pieces, deaf to padding rows, its tokenizer at rest."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_beats import ENCODER, FRONTEND
from training_batches import make_batch

from alm_jax.errors import UserError
from alm_jax.models.audio_tokenizer import LearnedTokenizerConfig, RandomProjectionConfig
from alm_jax.models.label_predictor import LabelPredictorConfig, predict_labels
from alm_jax.models.patch_decoders import GlobalDecoderConfig
from alm_jax.objectives import build_objective
from alm_jax.objectives.masked_prediction import MaskedPredictionConfig
from alm_jax.objectives.patch_masks import UnstructuredMaskConfig
from alm_jax.ops.patchify import patchify
from alm_jax.training.accumulation import loss_and_gradients

ROWS, NUM_PADDING, NUM_PATCHES = 12, 2, 32
CONFIG = MaskedPredictionConfig(
    model=LabelPredictorConfig(
        frontend=FRONTEND,
        encoder=ENCODER,
        tokenizer=RandomProjectionConfig(num_codes=12, code_dim=6),
        predictor=GlobalDecoderConfig(width=16, num_layers=1, num_heads=2, mlp_dim=32),
    )
)


@pytest.fixture(scope="module")
def objective():
    return build_objective(CONFIG)


@pytest.fixture(scope="module")
def run(objective):
    """(num_microbatches, batch) -> loss, gradients, batch_stats, metrics."""
    variables = objective.init(jax.random.key(0))

    @functools.partial(jax.jit, static_argnums=0)
    def compute(num_microbatches, batch):
        return loss_and_gradients(
            objective, variables, batch, jax.random.key(1), num_microbatches=num_microbatches
        )

    return lambda num_microbatches, batch: jax.device_get(compute(num_microbatches, batch))


def test_pieces_equal_the_whole_and_padding_rows_do_not_count(run):
    batch = make_batch(ROWS, num_padding=NUM_PADDING)
    loss, grads, _, metrics = run(1, batch)
    pieces, piece_grads, _, piece_metrics = run(3, batch)
    np.testing.assert_allclose(pieces, loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), piece_grads, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), piece_metrics, metrics)
    louder = dict(batch)
    louder["audio"] = np.where(batch["mask"][:, None], batch["audio"], 9999).astype(np.int16)
    again = run(1, louder)
    jax.tree.map(np.testing.assert_array_equal, (again[0], again[3]), (loss, metrics))
    # The tokenizer does not train, and everything else does.
    assert grads.keys() == {"encoder", "predictor"}
    jax.tree.map_with_path(lambda path, grad: np.any(grad) or pytest.fail(jax.tree_util.keystr(path)), grads)


def test_the_validation_loss_is_its_formula(objective):
    """In float64 NumPy: the nearest of unit vectors to a projected patch, and -log softmax of it where hidden."""
    batch = jax.tree.map(jnp.asarray, make_batch(ROWS, num_padding=NUM_PADDING))
    variables = objective.init(jax.random.key(0))

    @jax.jit
    def compute(variables, batch):
        features, masked = objective.prepare(batch, None, train=False).rows
        logits = predict_labels(CONFIG.model, variables, features, masked)
        return features, masked, logits, objective.loss(variables, batch, None, train=False)

    features, masked, logits, (loss, metrics) = compute(variables, batch)
    assert features.shape == (ROWS, 33, 16)  # the last frame is in no patch
    tokenizer = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"]["tokenizer"])
    projected = np.asarray(patchify(features[:, :32], 4), np.float64) @ tokenizer["projection"]
    np.testing.assert_allclose(np.linalg.norm(tokenizer["codebook"], axis=1), 1.0, atol=1e-6)
    projected /= np.linalg.norm(projected, axis=-1, keepdims=True)
    distances = np.square(projected[:, :, None] - tokenizer["codebook"]).sum(axis=-1)
    labels = distances.argmin(axis=-1)

    logits = np.asarray(logits, np.float64)
    log_softmax = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    chosen = np.take_along_axis(log_softmax, labels[..., None], axis=-1)[..., 0]
    real = np.asarray(batch["mask"])
    counted = np.asarray(masked.hidden) & real[:, None]
    assert counted.sum() == loss.weight == (ROWS - NUM_PADDING) * 24
    np.testing.assert_allclose(loss.sum / loss.weight, -chosen[counted].mean(), rtol=1e-5)
    accuracy, spread = (
        metrics[name].sum / metrics[name].weight for name in ("masked_accuracy", "label_perplexity")
    )
    np.testing.assert_allclose(accuracy, (logits.argmax(axis=-1) == labels)[counted].mean(), rtol=1e-6)
    share = np.bincount(labels[real].ravel(), minlength=12) / labels[real].size
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    np.testing.assert_allclose(spread, np.exp(entropy), rtol=1e-5)


def test_the_encoder_never_sees_what_it_is_asked_for(objective):
    """Other content of hidden patches changes labels, and no logit."""
    batch = jax.tree.map(jnp.asarray, make_batch(2))
    variables = objective.init(jax.random.key(0))
    features, masked = objective.prepare(batch, None, train=False).rows
    hidden = np.asarray(masked.hidden).reshape(2, 8, 4).repeat(4, axis=1).repeat(4, axis=2)
    other = np.array(features)
    other[:, :32] = np.where(hidden, other[:, ::-1][:, :32], other[:, :32])
    predict = jax.jit(functools.partial(predict_labels, CONFIG.model))
    np.testing.assert_array_equal(
        predict(variables, features, masked), predict(variables, jnp.asarray(other), masked)
    )


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="leaves none"):
        dataclasses.replace(CONFIG, mask=UnstructuredMaskConfig(ratio=0.99))
    coarser = LearnedTokenizerConfig(encoder=dataclasses.replace(ENCODER, patch_size=8))
    with pytest.raises(UserError, match=r"model\.tokenizer\.encoder cuts 16 mel bins into patches of 8"):
        dataclasses.replace(CONFIG.model, tokenizer=coarser)
    with pytest.raises(UserError, match="takes 32; make"):
        dataclasses.replace(CONFIG.model, encoder=dataclasses.replace(ENCODER, num_mels=32))
    with pytest.raises(UserError, match="two labels at least"):
        RandomProjectionConfig(num_codes=1)
