"""CTAL's objective: its formula, exact in pieces, deaf to padding rows and to what is hidden."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_batches import make_batch

from alm_jax.encoders.text.bert import BertConfig
from alm_jax.errors import UserError
from alm_jax.models import ctal
from alm_jax.models.ctal import CtalModelConfig
from alm_jax.objectives import build_objective
from alm_jax.objectives.ctal import CtalConfig, MaskedFramesConfig, encode_rows, prepare_rows
from alm_jax.objectives.masked_text import MaskedTextConfig
from alm_jax.ops.frontends import ClipSpec, CtalSpec
from alm_jax.training.accumulation import loss_and_gradients

ROWS, NUM_PADDING = 12, 2
CONFIG = CtalConfig(
    model=CtalModelConfig(
        frontend=CtalSpec(
            sample_rate_hz=8000,
            n_fft=256,
            window_samples=200,
            hop_samples=100,
            num_mels=8,
            fmax_hz=4000.0,
            clip=ClipSpec(clip_sec=0.4, train_crop="centre", pad="zero"),
        ),
        # No noise but the masks, so that different ways of running a step must agree.
        text=BertConfig(
            vocab_size=64, width=16, num_layers=1, num_heads=2, mlp_dim=16, max_positions=10, dropout=0.0
        ),
        num_audio_layers=1,
        max_frames=40,
    ),
    masked_text=MaskedTextConfig(proportion=0.5),
    masked_frames=MaskedFramesConfig(proportion=0.4, min_span=3, max_span=6),
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
    pieces, piece_grads, _, _ = run(3, batch)
    np.testing.assert_allclose(pieces, loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), piece_grads, grads)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
    np.testing.assert_allclose(metrics["masked_text_loss"] + metrics["masked_audio_loss"], loss, rtol=1e-6)
    louder = dict(batch)
    louder["audio"] = np.where(batch["mask"][:, None], batch["audio"], 9999).astype(np.int16)
    louder["text_ids"] = np.where(batch["mask"][:, None], batch["text_ids"], 9).astype(np.int32)
    np.testing.assert_array_equal(run(1, louder)[0], loss)


def test_the_validation_loss_is_its_formula(objective):
    """In float64 NumPy, of the words and the frames: cross-entropy of chosen words + L1 of chosen frames."""
    batch = jax.tree.map(jnp.asarray, make_batch(ROWS, num_padding=NUM_PADDING))
    variables = objective.init(jax.random.key(0))

    @jax.jit
    def compute(variables, batch):
        rows = prepare_rows(CONFIG, batch, None, train=False)
        outputs, drawn = encode_rows(CONFIG, variables, rows, train=False)
        again = prepare_rows(CONFIG, jax.tree.map(lambda x: x[::-1], batch), None, train=False)
        return rows, outputs, drawn, again, objective.loss(variables, batch, None, train=False)[0]

    rows, outputs, drawn, again, loss = jax.device_get(compute(variables, batch))
    np.testing.assert_array_equal(again.frames.chosen[::-1], rows.frames.chosen)
    np.testing.assert_array_equal(again.text_ids[::-1], rows.text_ids)
    real = np.asarray(batch["mask"])

    table, bias = (np.asarray(x, np.float64) for x in ctal.word_table(variables["params"]))
    chosen, ids = rows.text_chosen & real[:, None], np.asarray(batch["text_ids"])
    logits = np.asarray(outputs.words, np.float64) @ table.T + bias
    surprise = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, ids[..., None], -1)[..., 0]

    # A frame is centred on every 100th sample; spans lie among those that hold sound.
    lasts = np.arange(33)[None, :] * 100 < np.minimum(np.asarray(batch["audio_num_samples"]), 3200)[:, None]
    np.testing.assert_array_equal(rows.frame_mask, lasts)
    spans = rows.frames.chosen & real[:, None]
    assert spans.any(axis=1)[real].all()
    assert not (spans & ~lasts).any()
    absolute = np.abs(np.asarray(drawn, np.float64) - rows.features).mean(axis=-1)
    expected = surprise[chosen].mean() + absolute[spans].mean()
    np.testing.assert_allclose(loss.sum / loss.weight, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masked_frames": MaskedFramesConfig()}, "nothing would ever be hidden"),
        ({"text_weight": 0.0, "audio_weight": 0.0}, "one above"),
    ],
)
def test_configs_that_teach_nothing_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **change)
    with pytest.raises(UserError, match="1 <= min_span"):
        MaskedFramesConfig(min_span=5, max_span=4)
