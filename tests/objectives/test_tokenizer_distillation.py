"""The training of an audio tokenizer: its formula, its codebook alike in pieces and on devices, its teacher at rest."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_beats import ENCODER, FRONTEND
from training_batches import make_batch

from alm_jax.encoders.audio.beats import Beats
from alm_jax.errors import UserError
from alm_jax.models import distilled_tokenizer
from alm_jax.models.audio_tokenizer import LearnedTokenizerConfig, label_patches
from alm_jax.models.distilled_tokenizer import DistilledTokenizerConfig
from alm_jax.models.patch_decoders import GlobalDecoderConfig
from alm_jax.objectives import build_objective
from alm_jax.objectives.tokenizer_distillation import TokenizerDistillationConfig
from alm_jax.ops.vector_quantization import take_codes
from alm_jax.training.accumulation import loss_and_gradients
from alm_jax.training.build import build_parallel
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.mesh import MeshConfig, build_mesh
from alm_jax.training.optimizer import AdamWConfig

ROWS, NUM_PADDING, NUM_PATCHES = 16, 3, 32
CONFIG = TokenizerDistillationConfig(
    model=DistilledTokenizerConfig(
        frontend=FRONTEND,
        tokenizer=LearnedTokenizerConfig(encoder=ENCODER, num_codes=12, code_dim=6),
        teacher=ENCODER,
        estimator=GlobalDecoderConfig(width=16, num_layers=1, num_heads=2, mlp_dim=32),
    ),
    beta=0.7,
    # So that codes move, die and are revived within a few steps.
    codebook_decay=0.5,
    revive_below=0.3,
)


@pytest.fixture(scope="module")
def objective():
    return build_objective(CONFIG)


@pytest.fixture(scope="module")
def variables(objective):
    return objective.init(jax.random.key(0))


@pytest.fixture(scope="module")
def run(objective, variables):
    """(num_microbatches, batch) -> loss, gradients, batch_stats, metrics."""

    @functools.partial(jax.jit, static_argnums=0)
    def compute(num_microbatches, batch):
        return loss_and_gradients(
            objective, variables, batch, jax.random.key(1), num_microbatches=num_microbatches
        )

    return lambda num_microbatches, batch: jax.device_get(compute(num_microbatches, batch))


def test_pieces_equal_the_whole_and_padding_rows_do_not_count(run, variables):
    batch = make_batch(ROWS, num_padding=NUM_PADDING)
    loss, grads, stats, metrics = run(1, batch)
    pieces, piece_grads, piece_stats, _ = run(2, batch)
    np.testing.assert_allclose(pieces, loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), piece_grads, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), piece_stats, stats)
    louder = dict(batch)
    louder["audio"] = np.where(batch["mask"][:, None], batch["audio"], 9999).astype(np.int16)
    again = run(1, louder)
    jax.tree.map(np.testing.assert_array_equal, (again[0], *again[2:]), (loss, stats, metrics))
    assert not np.array_equal(
        stats["tokenizer"]["codebook"], variables["batch_stats"]["tokenizer"]["codebook"]
    )
    # The teacher does not train, and everything else does.
    assert grads.keys() == {"tokenizer", "estimator"}
    jax.tree.map_with_path(lambda path, grad: np.any(grad) or pytest.fail(jax.tree_util.keystr(path)), grads)


def test_the_validation_loss_is_its_formula(objective, variables):
    """1 - cos(estimate, teacher) + beta mean((latent - code)^2) in float64 NumPy; the estimator has only codes."""
    batch = jax.tree.map(jnp.asarray, make_batch(ROWS, num_padding=NUM_PADDING))
    model, own = CONFIG.model, distilled_tokenizer.tokenizer_variables(variables)
    vectors = own["batch_stats"]["codebook"]

    @jax.jit
    def compute(variables, batch):
        features = objective.prepare(batch, None, train=False).rows
        labels = label_patches(model.tokenizer, own, features, 4)
        estimate = distilled_tokenizer.estimate(model, variables, take_codes(labels, vectors))
        teacher = {"params": variables["params"]["teacher"]}
        states = Beats(ENCODER, jnp.dtype("float32"), "tokens").apply(teacher, features)
        latents = distilled_tokenizer.latents_of(model, variables, features)
        return labels, estimate, states, latents, objective.loss(variables, batch, None, train=False)

    labels, *parts, (loss, metrics) = compute(variables, batch)
    estimate, states, latents = (np.asarray(part, np.float64) for part in parts)
    real = np.asarray(batch["mask"])
    norms = np.linalg.norm(estimate, axis=-1) * np.linalg.norm(states, axis=-1)
    cosine = ((estimate * states).sum(axis=-1) / norms)[real]
    np.testing.assert_allclose(np.linalg.norm(latents, axis=-1), 1.0, atol=1e-6)
    squares = np.square(latents[:, :, None] - np.asarray(vectors, np.float64)).sum(axis=-1)
    np.testing.assert_array_equal(squares.argmin(axis=-1), labels)
    commitment = squares.min(axis=-1)[real] / 6
    assert loss.weight == cosine.size == (ROWS - NUM_PADDING) * NUM_PATCHES
    np.testing.assert_allclose(loss.sum / loss.weight, (1 - cosine + 0.7 * commitment).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["teacher_cosine"].sum / loss.weight, cosine.mean(), atol=1e-6)


def train(objective, mesh):
    training = TrainingConfig(num_steps=4, batch_size=ROWS, ema_decay=0.9)
    optimizer = AdamWConfig(warmup_steps=1, peak_lr=1e-2)
    parallel = build_parallel(objective, optimizer, training, seed=0, mesh=mesh)
    state, losses = parallel.init(), []
    for seed in range(3):
        state, metrics = parallel.step(state, make_batch(ROWS, num_padding=NUM_PADDING, seed=seed))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(parallel.unplaced(state))


@pytest.fixture(scope="module")
def one_device(objective):
    return train(objective, build_mesh(MeshConfig(), jax.devices()[:1]))


@pytest.mark.slow
def test_eight_devices_train_as_one(objective, one_device):
    losses, state = train(objective, build_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    one_losses, one = one_device
    np.testing.assert_allclose(losses, one_losses, rtol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), state.batch_stats, one.batch_stats)
    jax.tree.map(np.testing.assert_array_equal, state.params["teacher"], one.params["teacher"])


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="expected both in"):
        TokenizerDistillationConfig(model=CONFIG.model, codebook_decay=1.0)
