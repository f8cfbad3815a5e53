"""The objective of the Q-Former: its losses by formula, exact in pieces and over devices, deaf to padding rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_batches import make_batch

from alm_jax.encoders.audio.whisper import WhisperEncoderConfig
from alm_jax.errors import UserError
from alm_jax.losses.matching import matching_pairs_by_scores
from alm_jax.models import audio_q_former
from alm_jax.models.audio_q_former import AudioQFormerConfig, EncodedAudio
from alm_jax.models.q_former import QFormerConfig
from alm_jax.objectives import build_objective
from alm_jax.objectives.query_transformer import QueryTransformerConfig
from alm_jax.ops.frontends import AstSpec, ClipSpec
from alm_jax.training.accumulation import loss_and_gradients
from alm_jax.training.mesh import MeshConfig, build_mesh
from alm_jax.training.sharding import batch_sharding, parameter_shardings

ROWS, NUM_PADDING = 16, 3
CONFIG = QueryTransformerConfig(
    model=AudioQFormerConfig(
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
        audio=WhisperEncoderConfig(
            num_mels=16, max_positions=16, width=16, num_layers=1, num_heads=2, mlp_dim=32, pool_size=2
        ),
        # No noise but the negatives', so that different ways of running a step must agree.
        q_former=QFormerConfig(
            num_queries=3,
            width=24,
            num_layers=2,
            num_heads=2,
            mlp_dim=32,
            dropout=0.0,
            kernel_init="fan_in",
        ),
        vocab_size=64,
        max_positions=8,
        embed_dim=8,
        padding="masked",
    ),
    group="label",
)
MODEL = CONFIG.model
BATCH = make_batch(ROWS, num_padding=NUM_PADDING)
# Two classes of two rows; the others have none.
BATCH["label"][[1, 4, 6, 7]] = [0, 0, 5, 5]
REAL = BATCH["mask"]


@pytest.fixture(scope="module")
def objective():
    return build_objective(CONFIG)


@pytest.fixture(scope="module")
def variables(objective):
    """Match and word heads as they are drawn are next to nothing; here they are not."""
    drawn = objective.init(jax.random.key(0))
    params = dict(drawn["params"])
    for name in ("match_head", "text_embed"):
        params[name] = jax.tree.map(lambda x: 10 * x, params[name])
    return {**drawn, "params": params}


@pytest.fixture(scope="module")
def run(objective, variables):
    """(num_microbatches, batch) -> loss, gradients, batch_stats, metrics."""

    @functools.partial(jax.jit, static_argnums=0)
    def compute(num_microbatches, batch):
        return loss_and_gradients(
            objective, variables, batch, jax.random.key(1), num_microbatches=num_microbatches
        )

    return lambda num_microbatches, batch: jax.device_get(compute(num_microbatches, batch))


@pytest.fixture(scope="module")
def whole(run):
    return run(1, BATCH)


def test_pieces_equal_the_whole(run, whole):
    """The tower's gradients too, which reach it through states that other rows' pairs have read."""
    loss, grads, _, metrics = run(4, BATCH)
    np.testing.assert_allclose(loss, whole[0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), grads, whole[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), metrics, whole[3])


def test_padding_rows_do_not_count(run, whole):
    louder = dict(BATCH)
    louder["audio"] = np.where(REAL[:, None], BATCH["audio"], 9999).astype(np.int16)
    louder["text_ids"] = np.where(REAL[:, None], BATCH["text_ids"], 7).astype(np.int32)
    louder["text_mask"] = BATCH["text_mask"] | ~REAL[:, None]
    loss, grads, _, _ = run(1, louder)
    np.testing.assert_allclose(loss, whole[0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), grads, whole[1])


def test_every_parameter_has_a_gradient(whole):
    for path, grad in jax.tree.leaves_with_path(whole[1]):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # A key's bias adds the same to all of a query's scores, and softmax takes it away again.
        if name != "q_former/key_value/key/bias":
            assert np.abs(grad).max() > 1e-6, name


def cross_entropy(logits, targets):
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -(targets * log_p).sum(-1)


def test_the_losses_are_their_formulas(objective, variables):
    """In float64 NumPy, of what the model makes of each row by itself; matching's negatives as they are drawn."""
    batch = jax.tree.map(jnp.asarray, BATCH)

    @jax.jit
    def look(variables, batch):
        outputs, _ = objective.encode(
            variables, objective.prepare(batch, None, train=False), None, train=False
        )
        rows = jnp.arange(ROWS)
        audio, text = (x.reshape(-1) for x in jnp.meshgrid(rows, rows, indexing="ij"))
        encoded = EncodedAudio(outputs.audio_states[audio], outputs.audio_mask[audio] > 0)
        params = variables["params"]
        logits = audio_q_former.match(
            MODEL, params, encoded, batch["text_ids"][text], batch["text_mask"][text]
        )
        loss, metrics = objective.combine(params, outputs, batch, None)
        return outputs.read, logits.reshape(ROWS, ROWS), loss, metrics

    read, match_logits, loss, metrics = jax.device_get(look(variables, batch))
    params = jax.device_get(variables["params"])
    found = {name: metric.sum / metric.weight for name, metric in metrics.items()}
    np.testing.assert_allclose(
        loss.sum / loss.weight,
        found["contrastive_loss"] + found["matching_loss"] + found["generation_loss"],
        rtol=1e-5,
    )
    assert loss.weight == REAL.sum()

    similarity = np.einsum("ike,je->ijk", read.query_emb.astype(np.float64), read.text_emb).max(-1)
    logits = (similarity / 0.07)[REAL][:, REAL]
    label, size = BATCH["label"][REAL], REAL.sum()
    positive = (label[:, None] == label) & (label >= 0) | np.eye(size, dtype=bool)
    targets = 0.9 * positive / positive.sum(1, keepdims=True) + 0.1 / size
    contrast = (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)).mean() / 2
    np.testing.assert_allclose(found["contrastive_loss"], contrast, rtol=1e-5)

    words = params["text_embed"]["token_embed"]["embedding"].astype(np.float64)
    logits = read.written[:, :-1] @ words.T + params["lm_head"]["bias"]
    targets = 0.9 * np.eye(64)[BATCH["text_ids"][:, 1:]] + 0.1 / 64
    counted = (BATCH["text_mask"] & REAL[:, None])[:, 1:]
    np.testing.assert_allclose(
        found["generation_loss"], cross_entropy(logits, targets)[counted].mean(), rtol=1e-5
    )

    # tests/losses say whom negatives are drawn from; here, that these pairs are what is matched.
    alone = np.where(BATCH["label"] < 0, 100 + np.arange(ROWS), BATCH["label"])
    scores = jnp.asarray(similarity / 0.07, jnp.float32)
    pairs = matching_pairs_by_scores(jax.random.key(0), scores, group=jnp.asarray(alone), mask=batch["mask"])
    audio, text, is_match, counted = (np.asarray(x) for x in pairs)
    signed = np.where(is_match, -1, 1) * match_logits[audio, text].astype(np.float64)
    assert counted.sum() == 3 * size
    np.testing.assert_allclose(found["matching_loss"], np.logaddexp(0, signed)[counted].mean(), rtol=1e-5)
    np.testing.assert_allclose(found["matching_accuracy"], (signed < 0)[counted].mean(), rtol=1e-6)


def measure(objective, variables, batch):
    """Means of the loss and its parts in training, without gradients."""
    loss, metrics = objective.loss(variables, batch, jax.random.key(1), train=True)
    return {name: part.sum / part.weight for name, part in {"loss": loss, **metrics}.items()}


@pytest.fixture(scope="module")
def figures(objective, variables):
    """Of one device."""
    return jax.device_get(jax.jit(functools.partial(measure, objective))(variables, BATCH))


@pytest.mark.slow
def test_a_mesh_equals_one_device(objective, variables, figures):
    """Negatives too are mined in the whole batch."""
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    cut = parameter_shardings(objective.axes(), variables["params"], mesh)
    with jax.set_mesh(mesh):
        placed = {**variables, "params": jax.device_put(variables["params"], cut)}
        batch = jax.device_put(BATCH, batch_sharding(mesh))
        found = jax.device_get(jax.jit(functools.partial(measure, objective))(placed, batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, figures)


def test_what_does_not_fit_is_refused(variables):
    with pytest.raises(UserError, match="label_smoothing is 1"):
        dataclasses.replace(CONFIG, label_smoothing=1.0)
    params, long = variables["params"], jnp.zeros((1, 9), jnp.int32)
    with pytest.raises(UserError, match="8 positions"):
        audio_q_former.embed_text(MODEL, params, long, long == 0)
