"""The unit language model's objective: its formula, exact in pieces and on a mesh, deaf to padding rows."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_batches import make_batch

from alm_jax.encoders import family
from alm_jax.encoders.families import family_of
from alm_jax.encoders.text.gpt2 import Gpt2Config
from alm_jax.encoders.text.llama import LlamaConfig
from alm_jax.errors import UserError
from alm_jax.models.audio_units import CepstraConfig, ClusterUnitsConfig, frame_vectors
from alm_jax.models.unit_language_model import UnitLanguageModelConfig, language_family
from alm_jax.objectives import build_objective
from alm_jax.objectives.unit_language_modeling import (
    UnitLanguageModelingConfig,
    UnitTasksConfig,
    evaluation_clips,
)
from alm_jax.ops.frontends import ClipSpec, TorchlibrosaSpec
from alm_jax.training.accumulation import loss_and_gradients
from alm_jax.training.initialise import InitFromConfig, take_from
from alm_jax.training.mesh import MeshConfig, build_mesh
from alm_jax.training.sharding import batch_sharding, parameter_shardings
from alm_jax.training.state import init_state

ROWS, NUM_PADDING, WORDS, UNITS = 16, 3, 64, 14
CONFIG = UnitLanguageModelingConfig(
    model=UnitLanguageModelConfig(
        frontend=TorchlibrosaSpec(
            sample_rate_hz=8000,
            n_fft=256,
            hop_samples=160,
            num_mels=16,
            fmax_hz=4000.0,
            clip=ClipSpec(clip_sec=0.5, train_crop="centre", pad="zero"),
        ),
        units=ClusterUnitsConfig(num_units=UNITS, frames=CepstraConfig(num_cepstra=4)),
        language_model=LlamaConfig(
            vocab_size=WORDS + UNITS + 2,
            width=16,
            num_layers=1,
            num_heads=2,
            num_kv_heads=2,
            mlp_dim=32,
            max_positions=64,
            kernel_init="fan_in",
        ),
    ),
    # Room for everything, so that it does not matter who shares a row.
    row_tokens=80,
    examples_per_row=2,
)
BATCH = make_batch(ROWS, num_padding=NUM_PADDING)


@pytest.fixture(scope="module")
def objective():
    return build_objective(CONFIG)


@pytest.fixture(scope="module")
def variables(objective):
    """With units that tell frames apart, and no embedding so small that nothing depends on it."""
    variables = objective.init(jax.random.key(0))
    clusters = variables["params"]["units"]["clusters"]
    clips = evaluation_clips(CONFIG.model, jax.tree.map(jnp.asarray, BATCH))
    frames, mask = frame_vectors(CONFIG.model.units, {}, clips.features, clips.frame_mask)
    found = np.asarray(frames)[np.asarray(mask)]
    clusters |= {"mean": found.mean(axis=0), "deviation": found.std(axis=0)}
    language_model = variables["params"]["language_model"]
    table = language_model["token_embed"]
    table["embedding"] = jax.random.normal(jax.random.key(1), table["embedding"].shape)
    return variables


@pytest.fixture(scope="module")
def run(objective):
    """(num_microbatches, variables, batch) -> loss, gradients, batch_stats, metrics."""

    @functools.partial(jax.jit, static_argnums=0)
    def compute(num_microbatches, variables, batch):
        return loss_and_gradients(
            objective, variables, batch, jax.random.key(1), num_microbatches=num_microbatches
        )

    return compute


def test_pieces_equal_the_whole_and_padding_rows_do_not_count(run, variables):
    loss, grads, _, metrics = run(1, variables, BATCH)
    pieces, piece_grads, _, piece_metrics = run(2, variables, BATCH)
    np.testing.assert_allclose(pieces, loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), piece_metrics, metrics)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), piece_grads, grads)
    assert grads.keys() == {"language_model"}
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
    louder = dict(BATCH)
    louder["audio"] = np.where(BATCH["mask"][:, None], BATCH["audio"], 9999).astype(np.int16)
    louder["audio_num_samples"] = np.where(BATCH["mask"], BATCH["audio_num_samples"], 4096).astype(np.int32)
    np.testing.assert_array_equal(run(1, variables, louder)[0], loss)


def test_a_mesh_trains_as_one_device(objective, run, variables):
    loss, grads, _, _ = run(1, variables, BATCH)
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = parameter_shardings(objective.axes(), variables["params"], mesh)
    placed = variables | {"params": jax.device_put(variables["params"], shardings)}
    with jax.set_mesh(mesh):
        batch = jax.device_put(BATCH, batch_sharding(mesh))
        cut_loss, cut_grads, _, _ = run(1, placed, batch)
    np.testing.assert_allclose(cut_loss, loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), jax.device_get(cut_grads), grads)


def expect(variables, task: int, loss_on: str) -> tuple[float, int]:
    """Sum and number of the losses: units by a search in float64, texts read one by one, log softmax in float64."""
    model = CONFIG.model
    clips = evaluation_clips(model, jax.tree.map(jnp.asarray, BATCH))
    frames, is_real = map(np.asarray, frame_vectors(model.units, {}, clips.features, clips.frame_mask))
    clusters = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"]["units"]["clusters"])
    length = CONFIG.row_tokens // 2

    @jax.jit
    def read(ids, mask):
        params = {"params": variables["params"]["language_model"]}
        return family.apply(language_family(model), model.language_model, params, ids, mask)

    texts, asked = np.zeros((ROWS, length), np.int32), np.zeros((ROWS, length), bool)
    lengths = np.zeros(ROWS, int)
    for row in range(ROWS - NUM_PADDING):
        standard = (frames[row][is_real[row]].astype(np.float64) - clusters["mean"]) / clusters["deviation"]
        nearest = np.square(standard[:, None] - clusters["centroids"][None]).sum(axis=-1).argmin(axis=1)
        units = [WORDS + unit for unit, _ in itertools.groupby(nearest.tolist())]
        said = [WORDS + UNITS, *units, WORDS + UNITS + 1]
        words = BATCH["text_ids"][row][BATCH["text_mask"][row]].tolist()
        text = {0: said, 1: said + words, 2: words + said}[task]
        first_asked = {0: 1, 1: len(said) + 1, 2: len(words) + 1}[task] if loss_on == "answer" else 1
        texts[row, : len(text)] = text
        asked[row, first_asked : len(text)] = True
        lengths[row] = len(text)
    logits = np.asarray(read(texts, np.arange(length) < lengths[:, None]), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    chosen = np.take_along_axis(log_probs[:, :-1], texts[:, 1:, None], axis=-1)[..., 0]
    return -chosen[asked[:, 1:]].sum(), asked.sum()


@pytest.mark.parametrize(
    ("task", "loss_on"),
    [
        (2, "all"),
        pytest.param(1, "answer", marks=pytest.mark.slow),
        pytest.param(0, "all", marks=pytest.mark.slow),
    ],
)
def test_the_loss_is_its_formula(variables, task, loss_on):
    tasks = UnitTasksConfig(
        speech=float(task == 0), units_to_text=float(task == 1), text_to_units=float(task == 2)
    )
    objective = build_objective(dataclasses.replace(CONFIG, tasks=tasks, loss_on=loss_on))
    loss, metrics = jax.jit(lambda v, b: objective.loss(v, b, None, train=False))(variables, BATCH)
    expected, number = expect(variables, task, loss_on)
    np.testing.assert_allclose(loss.sum, expected, rtol=1e-5)
    assert loss.weight == number
    assert (metrics["word_loss"].weight > 0) == (task > 0)
    assert (metrics["unit_loss"].weight > 0) == (loss_on == "all")


def test_tasks_are_drawn_by_their_shares_and_stay_in_evaluation(objective):
    shares = UnitTasksConfig(speech=1.0, units_to_text=3.0, text_to_units=0.0)
    other = build_objective(dataclasses.replace(CONFIG, tasks=shares))
    prepare = jax.jit(lambda batch, key: other.prepare(batch, key, train=key is not None).rows.task)
    drawn = np.concatenate([prepare(BATCH, jax.random.key(seed)) for seed in range(40)])
    assert np.isin(drawn, [0, 1]).all()
    assert 0.68 < np.mean(drawn == 1) < 0.82
    turned = {name: value[::-1] for name, value in BATCH.items()}
    np.testing.assert_array_equal(prepare(turned, None)[::-1], prepare(BATCH, None))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: UnitTasksConfig(speech=0.0, units_to_text=0.0, text_to_units=0.0), "tasks"),
        (lambda: dataclasses.replace(CONFIG, row_tokens=300), "max_positions"),
        (lambda: dataclasses.replace(CONFIG.model, language_model=Gpt2Config(vocab_size=16)), "vocab_size"),
        (lambda: ClusterUnitsConfig(layer=3), "layer"),
        (
            lambda: build_objective(dataclasses.replace(CONFIG, row_tokens=20)).prepare(
                BATCH, None, train=False
            ),
            "leave 0 units",
        ),
    ],
)
def test_what_does_not_fit_is_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_a_published_language_model_gets_units_beside_its_words(objective):
    """Its rows of the table come first, its columns of the head too; the new ones stay as drawn."""
    words = dataclasses.replace(CONFIG.model.language_model, vocab_size=WORDS)
    given = family.init(family_of(words), words, jax.random.key(7))
    state = init_state(objective, optax.sgd(0.1), 0, with_ema=False)
    drawn = jax.device_get(state.params)["language_model"]
    config = InitFromConfig(source="words", into="language_model", is_extended=True)
    state_taken, said = take_from(state, given, config)
    taken = state_taken.params["language_model"]
    assert said.endswith("longer here, and new at their ends: head/kernel, token_embed/embedding")
    for path, axis in (("token_embed/embedding", 0), ("head/kernel", 1)):
        ours, theirs, before = (
            np.moveaxis(np.asarray(tree[path.split("/")[0]][path.split("/")[1]]), axis, 0)
            for tree in (taken, given["params"], drawn)
        )
        np.testing.assert_array_equal(ours[:WORDS], theirs)
        np.testing.assert_array_equal(ours[WORDS:], before[WORDS:])
        assert len(ours) == WORDS + UNITS + 2
    jax.tree.map(np.testing.assert_array_equal, taken["blocks"], given["params"]["blocks"])
    with pytest.raises(UserError, match="has shape"):
        take_from(state, given, dataclasses.replace(config, is_extended=False))
    wider = dataclasses.replace(words, mlp_dim=48)
    with pytest.raises(UserError, match="mlp"):
        take_from(state, family.init(family_of(wider), wider, jax.random.key(7)), config)
