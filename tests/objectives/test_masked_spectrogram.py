"""The masked-spectrogram objective: exact in pieces, deaf to padding rows, its masks those it says."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_batches import make_batch

from alm_jax.encoders.audio.audio_mae import AudioMaeConfig
from alm_jax.errors import UserError
from alm_jax.models.masked_autoencoder import MaskedAutoencoderConfig, reconstruct
from alm_jax.models.patch_decoders import LocalDecoderConfig
from alm_jax.objectives import build_objective
from alm_jax.objectives.masked_spectrogram import MaskedSpectrogramConfig
from alm_jax.objectives.patch_masks import (
    StructuredMaskConfig,
    UnstructuredMaskConfig,
    draw_masks,
    evaluation_masks,
)
from alm_jax.ops.frontends import AstSpec, ClipSpec
from alm_jax.ops.patchify import patchify
from alm_jax.training.accumulation import loss_and_gradients

ROWS, NUM_PADDING = 12, 2
CONFIG = MaskedSpectrogramConfig(
    model=MaskedAutoencoderConfig(
        frontend=AstSpec(
            sample_rate_hz=8000,
            n_fft=256,
            window_samples=200,
            hop_samples=100,
            num_mels=16,
            fmax_hz=4000.0,
            padded_frames=32,
            clip=ClipSpec(clip_sec=0.5, train_crop="centre"),
        ),
        encoder=AudioMaeConfig(
            num_frames=32, num_mels=16, patch_size=4, width=16, num_layers=1, num_heads=2, mlp_dim=32
        ),
        # No noise but the masks, so that different ways of running a step must agree.
        decoder=LocalDecoderConfig(
            width=16, num_layers=2, num_heads=2, mlp_dim=32, bias_dim=8, bias_dropout=0.0
        ),
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
    loss, grads, _, _ = run(1, batch)
    pieces, piece_grads, _, _ = run(3, batch)
    np.testing.assert_allclose(pieces, loss, rtol=1e-6)
    # Gradients reach 0.4; the largest error was 4e-6.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), piece_grads, grads)
    louder = dict(batch)
    louder["audio"] = np.where(batch["mask"][:, None], batch["audio"], 9999).astype(np.int16)
    np.testing.assert_array_equal(run(1, louder)[0], loss)


def test_the_validation_loss_is_its_formula_and_every_recording_keeps_its_mask(objective):
    """In float64 NumPy: mean over hidden patches of the mean square of (pixels - standardised patch)."""
    batch = jax.tree.map(jnp.asarray, make_batch(ROWS, num_padding=NUM_PADDING))
    variables = objective.init(jax.random.key(0))

    @jax.jit
    def compute(variables, batch):
        features, masked = objective.prepare(batch, None, train=False).rows
        pixels = reconstruct(CONFIG.model, variables, features, masked)
        return features, masked, pixels, objective.loss(variables, batch, None, train=False)[0]

    features, masked, pixels, loss = compute(variables, batch)
    pixels = np.asarray(pixels, np.float64)
    patches = np.asarray(patchify(features, 4), np.float64)
    mean, variance = patches.mean(axis=-1, keepdims=True), patches.var(axis=-1, keepdims=True, ddof=1)
    square = np.square(pixels - (patches - mean) / np.sqrt(variance + 1e-6)).mean(axis=-1)
    counted = np.asarray(masked.hidden & batch["mask"][:, None])
    expected = square[counted].mean()
    np.testing.assert_allclose(loss.sum / loss.weight, expected, rtol=1e-5)
    assert loss.weight == (ROWS - NUM_PADDING) * 26

    order = np.arange(ROWS)[::-1]
    again = evaluation_masks(CONFIG.mask, CONFIG.model.grid, batch["index"][order])
    np.testing.assert_array_equal(again.hidden, masked.hidden[order])


def test_structured_masks_hide_whole_steps_and_bands():
    mask = StructuredMaskConfig(time_ratio=0.5, freq_ratio=0.25)
    masks = draw_masks(mask, CONFIG.model.grid, jax.random.split(jax.random.key(0), 5))
    hidden = np.asarray(masks.hidden).reshape(5, 8, 4)
    assert masks.visible_ids.shape == (5, 4 * 3)
    for clip in hidden:
        steps, bands = clip.all(axis=1), clip.all(axis=0)
        assert (steps.sum(), bands.sum()) == (4, 1)
        np.testing.assert_array_equal(clip, steps[:, None] | bands[None, :])
    assert len({clip.tobytes() for clip in hidden}) > 1


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (UnstructuredMaskConfig(ratio=0.99), "leaves none"),
        (StructuredMaskConfig(time_ratio=0.5, freq_ratio=0.9), "4 bands"),
        (UnstructuredMaskConfig(ratio=0.0), "hides nothing"),
    ],
)
def test_masks_that_teach_nothing_are_refused(mask, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, mask=mask)
