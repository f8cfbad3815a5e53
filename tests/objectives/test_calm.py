"""The CALM-style objective: its formula, exact in pieces, deaf to padding rows, the same on eight devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_batches import make_batch

from alm_jax.errors import UserError
from alm_jax.models import one_head
from alm_jax.models.one_head import OneHeadConfig
from alm_jax.objectives import build_objective
from alm_jax.objectives.calm import CalmConfig, encode_rows, prepare_rows
from alm_jax.objectives.masked_text import MaskedTextConfig
from alm_jax.objectives.objective import Loss
from alm_jax.objectives.weighted_sum import add_means
from alm_jax.ops.frontends import AstSpec, ClipSpec
from alm_jax.ops.patchify import patchify
from alm_jax.training.accumulation import loss_and_gradients
from alm_jax.training.mesh import MeshConfig, build_mesh
from alm_jax.training.optimizer import AdamWConfig, build_optimizer, learning_rate
from alm_jax.training.parallel import JitParallel
from alm_jax.training.state import init_state
from alm_jax.training.step import build_train_step

ROWS, NUM_PADDING = 12, 2
CONFIG = CalmConfig(
    model=OneHeadConfig(
        frontend=AstSpec(
            sample_rate_hz=8000,
            n_fft=256,
            window_samples=200,
            hop_samples=100,
            num_mels=16,
            fmax_hz=4000.0,
            padded_frames=32,
            clip=ClipSpec(clip_sec=0.5, train_crop="centre", pad="zero"),
        ),
        patch_size=4,
        vocab_size=64,
        max_length=8,
        width=16,
        num_layers=1,
        num_heads=2,
        mlp_dim=16,
        embed_dim=8,
    ),
    masked_text=MaskedTextConfig(proportion=0.5),
    contrastive_weight=0.7,
    text_weight=1.3,
    audio_weight=0.4,
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
    # Gradients of this small a model are as large as 22; the largest error was 2.7e-5.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1.1e-4), piece_grads, grads)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
    total = sum(weight * metrics[f"{name}_loss"] for name, weight in CONFIG.weights.items())
    np.testing.assert_allclose(total, loss, rtol=1e-6)
    louder = dict(batch)
    louder["audio"] = np.where(batch["mask"][:, None], batch["audio"], 9999).astype(np.int16)
    louder["text_ids"] = np.where(batch["mask"][:, None], batch["text_ids"], 9).astype(np.int32)
    np.testing.assert_array_equal(run(1, louder)[0], loss)


def test_the_validation_loss_is_its_formula(objective):
    """In float64 NumPy, of the embeddings, words and pixels: 0.7 InfoNCE + 1.3 cross-entropy + 0.4 squared error."""
    batch = jax.tree.map(jnp.asarray, make_batch(ROWS, num_padding=NUM_PADDING))
    variables = objective.init(jax.random.key(0))

    @jax.jit
    def compute(variables, batch):
        rows = prepare_rows(CONFIG, batch, None, train=False)
        outputs, pixels = encode_rows(CONFIG, variables, rows)
        again = prepare_rows(CONFIG, jax.tree.map(lambda x: x[::-1], batch), None, train=False)
        loss = objective.loss(variables, batch, None, train=False)[0]
        return rows, outputs, pixels, again, loss

    rows, outputs, pixels, again, loss = jax.device_get(compute(variables, batch))
    for name in ("patch_hidden", "text_chosen", "text_altered"):
        np.testing.assert_array_equal(getattr(again, name)[::-1], getattr(rows, name))
    assert rows.together is None
    real = np.asarray(batch["mask"])

    audio, text = (np.asarray(x, np.float64)[real] for x in outputs[:2])
    logits = audio @ text.T / 0.07
    paired = np.diag(logits)
    contrastive = np.mean((np.log(np.exp(logits).sum(0)) + np.log(np.exp(logits).sum(1))) / 2 - paired)

    table, bias = (np.asarray(x, np.float64) for x in one_head.word_table(variables["params"]))
    chosen, ids = rows.text_chosen & real[:, None], np.asarray(batch["text_ids"])
    assert not (chosen & (~np.asarray(batch["text_mask"]) | (ids < 5))).any()
    word_logits = np.asarray(outputs.words, np.float64) @ table.T + bias
    surprise = (
        np.log(np.exp(word_logits).sum(-1)) - np.take_along_axis(word_logits, ids[..., None], -1)[..., 0]
    )

    patches = np.asarray(patchify(jnp.asarray(rows.features), 4), np.float64)
    mean, variance = patches.mean(axis=-1, keepdims=True), patches.var(axis=-1, keepdims=True, ddof=1)
    square = np.square(pixels - (patches - mean) / np.sqrt(variance + 1e-6)).mean(axis=-1)
    # 100 samples a frame, 4 frames a patch, 4 bands: a patch counts where the sound still lasts.
    begin = np.repeat(np.arange(8) * 400, 4)
    lasts = begin[None, :] < np.minimum(np.asarray(batch["audio_num_samples"]), 4000)[:, None]
    counted = rows.patch_hidden & lasts & real[:, None]
    expected = 0.7 * contrastive + 1.3 * surprise[chosen].mean() + 0.4 * square[counted].mean()
    np.testing.assert_allclose(loss.sum / loss.weight, expected, rtol=1e-5)
    assert loss.weight == ROWS - NUM_PADDING


def test_a_share_of_the_rows_is_alone():
    batch = jax.tree.map(jnp.asarray, make_batch(2000))
    config = dataclasses.replace(CONFIG, alone_rate=0.25)
    batch = {key: value[:, :64] if key == "audio" else value for key, value in batch.items()}
    drawn = jax.jit(lambda key: prepare_rows(config, batch, key, train=True))(jax.random.key(0))
    assert 0.2 < 1 - np.mean(drawn.together) < 0.3
    # Half of the words, 80 % of them hidden and 10 % replaced; never a special token.
    words = np.asarray(batch["text_mask"])
    assert 0.45 < np.mean(drawn.text_chosen[words]) < 0.55
    assert 0.75 < np.mean(drawn.text_altered[drawn.text_chosen] == 4) < 0.85
    assert config.weights == CONFIG.weights


def test_a_weighted_sum_of_means():
    """sum_k w_k (sum / weight), by hand; a term of which nothing counts adds nothing."""
    rng = np.random.default_rng(0)
    sums, weights = rng.normal(size=2).astype(np.float32), rng.integers(1, 5, 2).astype(np.float32)
    mask = np.array([True, False, True, True])
    losses = {"a": Loss(sums[0], weights[0]), "b": Loss(sums[1], weights[1])}
    losses["none"] = Loss(jnp.zeros(()), jnp.zeros(()))
    total = add_means(losses, {"a": 0.5, "b": 2.0, "none": 3.0}, jnp.asarray(mask))
    means = sums.astype(np.float64) / weights
    np.testing.assert_allclose(total.sum / total.weight, 0.5 * means[0] + 2 * means[1], rtol=1e-5)
    assert total.weight == mask.sum()


@pytest.mark.slow
def test_eight_devices_train_as_one():
    def train(mesh):
        objective = build_objective(CONFIG)
        config = AdamWConfig(warmup_steps=1, peak_lr=1e-2)
        abstract = jax.eval_shape(objective.init, jax.random.key(0))
        optimizer = build_optimizer(config, 10, abstract["params"])
        init = functools.partial(init_state, objective, optimizer, 0, with_ema=True)
        step = build_train_step(objective, optimizer, schedule=learning_rate(config, 10), ema_decay=0.9)
        parallel = JitParallel(init, step, objective, mesh)
        state, losses = parallel.init(), []
        for seed in range(2):
            state, metrics = parallel.step(state, make_batch(16, num_padding=3, seed=seed))
            losses.append(float(metrics["loss"]))
        return losses

    one = train(build_mesh(MeshConfig(), jax.devices()[:1]))
    eight = train(build_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    np.testing.assert_allclose(eight, one, rtol=2e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alone_rate": 1.0}, "below 1"),
        ({"text_weight": -1.0}, "none below 0"),
        ({"contrastive_weight": 0.0, "text_weight": 0.0, "audio_weight": 0.0}, "one above"),
    ],
)
def test_configs_that_cannot_be_meant_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **change)
    with pytest.raises(UserError, match="proportion"):
        MaskedTextConfig(proportion=0.0)
