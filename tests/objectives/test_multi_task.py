"""Several objectives over one trunk: the weighted sum of their means, each over its own rows; the trunk runs once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from training_batches import make_batch

from alm_jax.encoders.audio.audio_mae import AudioMaeConfig
from alm_jax.encoders.audio.packed_vit import PackedVitConfig
from alm_jax.errors import UserError
from alm_jax.losses.matching import matching_pairs
from alm_jax.models import contrastive_captioner
from alm_jax.models.caption_decoder import CaptionDecoderConfig
from alm_jax.models.contrastive_captioner import ContrastiveCaptionerConfig
from alm_jax.models.masked_autoencoder import reconstruct
from alm_jax.models.patch_decoders import GlobalDecoderConfig
from alm_jax.objectives.multi_task import (
    CaptioningTerm,
    ContrastiveTerm,
    MatchingTerm,
    MultiTaskConfig,
    ReconstructionTerm,
    build_multi_task,
    encode_rows,
)
from alm_jax.ops.frontends import AstSpec, ClipSpec
from alm_jax.ops.patchify import patchify
from alm_jax.training import mesh as meshes
from alm_jax.training import sharding
from alm_jax.training.accumulation import loss_and_gradients

ROWS, NUM_PADDING, PATCH = 16, 3, 4
MODEL = ContrastiveCaptionerConfig(
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
    audio=AudioMaeConfig(
        num_frames=32, num_mels=16, patch_size=PATCH, width=20, num_layers=1, num_heads=2, mlp_dim=32
    ),
    text=CaptionDecoderConfig(
        vocab_size=64,
        width=24,
        num_unimodal_layers=1,
        num_multimodal_layers=1,
        num_heads=2,
        mlp_dim=32,
        max_positions=9,
        kernel_init="fan_in",
    ),
    caption_queries=3,
    embed_dim=8,
    matching_head=True,
    patch_decoder=GlobalDecoderConfig(width=16, num_layers=1, num_heads=2, mlp_dim=16),
)
WEIGHTS = {"contrastive": 1.0, "captioning": 2.0, "matching": 0.5, "reconstruction": 3.0}
TERMS = (ContrastiveTerm(), CaptioningTerm(), MatchingTerm(weight=0.5), ReconstructionTerm(weight=3.0))
CONFIG = MultiTaskConfig(model=MODEL, terms=TERMS)
MIXED = dataclasses.replace(
    CONFIG,
    terms=(
        ContrastiveTerm(sources=(0,)),
        CaptioningTerm(sources=(0, 2)),
        MatchingTerm(weight=0.5, sources=(0,)),
        ReconstructionTerm(weight=3.0, sources=(1,)),
    ),
)
SOURCE = np.where(np.arange(ROWS) < ROWS - NUM_PADDING, np.arange(ROWS) % 3, -1).astype(np.int32)


def batch(seed=0):
    return make_batch(ROWS, num_padding=NUM_PADDING, seed=seed) | {"source": SOURCE}


@pytest.fixture(scope="module")
def variables():
    """Random everywhere, so that no loss is near what chance would give."""
    rng = np.random.default_rng(0)
    drawn = build_multi_task(CONFIG).init(jax.random.key(0))
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32), drawn["params"]
    )
    return drawn | {"params": params}


@pytest.fixture(scope="module")
def run(variables):
    """(config, num_microbatches, batch) -> loss, gradients, batch_stats, metrics."""

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def compute(config, num_microbatches, batch):
        return loss_and_gradients(
            build_multi_task(config), variables, batch, jax.random.key(1), num_microbatches=num_microbatches
        )

    return lambda *args: jax.device_get(compute(*args))


@pytest.fixture(scope="module")
def measured(run):
    return run(MIXED, 1, batch())


def test_pieces_equal_the_whole_and_padding_rows_do_not_count(run, measured):
    loss, grads, _, metrics = measured
    pieces, piece_grads, _, piece_metrics = run(MIXED, 4, batch())
    np.testing.assert_allclose(pieces, loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), piece_grads, grads)
    assert metrics.keys() == piece_metrics.keys()
    louder = batch()
    padding = ~louder["mask"]
    louder["audio"] = np.where(padding[:, None], 9999, louder["audio"]).astype(np.int16)
    louder["text_mask"] = louder["text_mask"] | padding[:, None]
    assert run(MIXED, 1, louder)[0] == loss
    total = sum(weight * metrics[f"{name}_loss"] for name, weight in WEIGHTS.items())
    np.testing.assert_allclose(loss, total, rtol=1e-6)


def test_gradients_reach_every_parameter(measured):
    for path, grad in jax.tree.leaves_with_path(measured[1]):
        assert np.abs(grad).max() > 0, path


@pytest.fixture(scope="module")
def examined(variables):
    """batch -> inputs, outputs, pixels, pairs and their logits, all grounded again, and the loss, without noise."""
    objective, params = build_multi_task(MIXED), variables["params"]

    @jax.jit
    def compute(given):
        rows = objective.prepare(given, None, train=False).rows
        outputs, _ = encode_rows(MIXED, variables, rows, train=False)
        whole = contrastive_captioner.autoencoder_variables(params)
        pixels = reconstruct(MODEL.autoencoder, whole, rows.features, rows.masked)
        pairs = matching_pairs(
            jax.random.key(0),
            outputs.audio_emb,
            outputs.text_emb,
            jnp.exp(params["log_logit_scale"]),
            group=given["index"],
            mask=given["mask"] & (given["source"] == 0),
        )
        grounded = contrastive_captioner.ground_texts(
            MODEL,
            params,
            outputs.text_states[pairs.text_index],
            given["text_mask"][pairs.text_index],
            outputs.vectors[pairs.audio_index],
        )
        logits = contrastive_captioner.matching_logits(MODEL, params, grounded)
        return rows, outputs, pixels, pairs, logits, objective.combine(params, outputs, given, None)

    return lambda given: jax.tree.map(np.asarray, compute(jax.tree.map(jnp.asarray, given)))


def test_the_validation_loss_is_its_formula(variables, examined):
    """In float64 NumPy, of the model's outputs: every term over the rows of its own sources."""
    given = batch()
    rows, outputs, pixels, pairs, logits, (loss, metrics) = examined(given)
    real, params = given["mask"], jax.tree.map(np.float64, variables["params"])
    expected = {}

    own = real & (SOURCE == 0)
    scores = np.exp(params["log_logit_scale"]) * np.float64(outputs.audio_emb[own]) @ outputs.text_emb[own].T
    per_way = [np.diag(x) - np.log(np.exp(x).sum(axis=1)) for x in (scores, scores.T)]
    expected["contrastive"] = -np.mean(per_way)

    counted = np.concatenate([own] * 3)
    assert (pairs.mask == counted).all()
    signed = np.float64(logits) * np.where(pairs.is_match, 1, -1)
    expected["matching"] = np.log1p(np.exp(-signed))[counted].mean()

    own = real & np.isin(SOURCE, (0, 2))
    scores = np.float64(outputs.grounded[:, :-2]) @ params["text"]["token_embed"]["embedding"].T
    log_prob = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    log_prob = np.take_along_axis(log_prob, given["text_ids"][:, 1:, None], axis=-1)[..., 0]
    expected["captioning"] = -log_prob[given["text_mask"][:, 1:] & own[:, None]].mean()

    own = real & (SOURCE == 1)
    patches = np.asarray(patchify(jnp.asarray(rows.features), PATCH), np.float64)
    mean, variance = patches.mean(axis=-1, keepdims=True), patches.var(axis=-1, keepdims=True, ddof=1)
    square = np.square(pixels - (patches - mean) / np.sqrt(variance + 1e-6)).mean(axis=-1)
    expected["reconstruction"] = square[rows.masked.hidden & own[:, None]].mean()

    for name, value in expected.items():
        found = metrics[f"{name}_loss"]
        np.testing.assert_allclose(found.sum / found.weight, value, rtol=1e-5, err_msg=name)
    total = sum(WEIGHTS[name] * value for name, value in expected.items())
    np.testing.assert_allclose(loss.sum / loss.weight, total, rtol=1e-5)


def test_recordings_are_no_negatives_of_themselves(examined):
    """Where all rows are of one recording there is nothing to mine: the rows' own pairs are left."""
    given = batch()
    num_rows = (given["mask"] & (SOURCE == 0)).sum()
    assert examined(given)[-1][1]["matching_loss"].weight == 3 * num_rows
    alone = given | {"index": np.where(given["mask"], 5, -1).astype(np.int32)}
    assert examined(alone)[-1][1]["matching_loss"].weight == num_rows


def test_rows_of_other_sources_have_no_part_in_a_term(run, measured):
    """What is heard and written in rows of source 2 is read for captions alone; source 1 is never read."""
    other = batch()
    fresh = make_batch(ROWS, seed=7)
    for key in ("audio", "text_ids"):
        shape = (-1,) + (1,) * (other[key].ndim - 1)
        other[key] = np.where((SOURCE == 2).reshape(shape), fresh[key], other[key])
    other["text_ids"] = np.where((SOURCE == 1)[:, None], fresh["text_ids"], other["text_ids"])
    _, _, _, found = run(MIXED, 1, other)
    _, _, _, before = measured
    for name in ("contrastive", "matching", "reconstruction"):
        assert found[f"{name}_loss"] == before[f"{name}_loss"], name
    assert abs(found["captioning_loss"] - before["captioning_loss"]) > 1e-3


def test_by_turns_a_term_without_a_row_adds_nothing(run):
    """A batch of source 1 alone is one of a masked autoencoder: no gradient reaches what only other terms train."""
    alone = batch() | {"source": np.where(SOURCE >= 0, 1, -1).astype(np.int32)}
    loss, grads, _, metrics = run(MIXED, 1, alone)
    assert {name for name in WEIGHTS if metrics[f"{name}_loss"] > 0} == {"reconstruction"}
    np.testing.assert_allclose(loss, 3.0 * metrics["reconstruction_loss"], rtol=1e-6)
    reached = {
        name for name, tree in grads.items() if any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(tree))
    }
    assert reached == {"audio", "patch_decoder"}


def count_products(jaxpr, shape) -> int:
    """Matrix products with a kernel of this shape, in a program and all that it calls; a scan's body once."""
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    found = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found += equation.invars[1].aval.shape == shape
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr)):
            if isinstance(value, Jaxpr | ClosedJaxpr):
                found += count_products(value, shape)
    return found


@pytest.mark.parametrize(("terms", "times"), [(3, 1), (4, 2)])
def test_the_trunk_runs_once_for_all_terms_that_hear_the_clip(terms, times):
    """By its first product, patches with their kernel: once, and once more for the part that is not hidden."""
    model = MODEL if terms == 4 else dataclasses.replace(MODEL, patch_decoder=None)
    config = dataclasses.replace(CONFIG, model=model, terms=TERMS[:terms])
    objective = build_multi_task(config)
    variables = jax.eval_shape(objective.init, jax.random.key(0))
    program = jax.make_jaxpr(lambda v, b: objective.loss(v, b, jax.random.key(0), train=True))(
        variables, batch()
    )
    kernel = variables["params"]["audio"]["patch_embed"]["kernel"].shape
    assert count_products(program, kernel) == times


@pytest.mark.slow
def test_eight_devices_are_one(variables, run):
    """On a mesh of data x fsdp x tensor, all four terms."""
    objective, given = build_multi_task(CONFIG), batch()
    del given["source"]
    expected, expected_grads, _, _ = run(CONFIG, 1, given)
    mesh = meshes.build_mesh(meshes.MeshConfig(data=2, fsdp=2, tensor=2))
    axes = sharding.parameter_shardings(objective.axes(), variables["params"], mesh)
    with jax.set_mesh(mesh):
        placed = variables | {"params": jax.device_put(variables["params"], axes)}
        loss, grads, _, _ = jax.jit(
            lambda v, b: loss_and_gradients(objective, v, b, jax.random.key(1), num_microbatches=2)
        )(placed, sharding.place_batch(given, mesh))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), jax.device_get(grads), expected_grads
    )


PACKED = dataclasses.replace(
    MODEL,
    frontend=dataclasses.replace(MODEL.frontend, clip=dataclasses.replace(MODEL.frontend.clip, pad="zero")),
    audio=PackedVitConfig(
        num_frames=32,
        num_mels=16,
        patch_size=PATCH,
        width=16,
        num_layers=1,
        num_heads=2,
        mlp_dim=16,
        clips_per_row=4,
        row_steps=30,
    ),
    padding="masked",
    matching_head=False,
    patch_decoder=None,
)


def test_packed_clips_of_mixed_lengths_do_not_hear_each_other():
    """Four clips share a row of the trunk: each has the outputs that it has alone, and another one changes none."""
    config = MultiTaskConfig(model=PACKED)
    objective = build_multi_task(config)
    variables = objective.init(jax.random.key(0))
    given = make_batch(ROWS)
    lengths = np.resize([1500, 4000, 800, 2500], ROWS).astype(np.int32)
    given["audio_num_samples"] = lengths
    given["audio"] = given["audio"] * (np.arange(given["audio"].shape[1]) < lengths[:, None])

    @functools.partial(jax.jit, static_argnums=0)
    def encode(train, given):
        rows = objective.prepare(given, jax.random.key(1), train=train).rows
        return encode_rows(config, variables, rows, train=train, key=jax.random.key(2))[0]

    packed = encode(True, given)
    for whole, alone in zip(jax.tree.leaves(packed), jax.tree.leaves(encode(False, given)), strict=True):
        np.testing.assert_allclose(whole, alone, atol=1e-5)
    louder = dict(given)
    louder["audio"] = np.where(np.arange(ROWS)[:, None] == 5, given["audio"][::-1], given["audio"])
    others = np.arange(ROWS) != 5
    changed = encode(True, louder)
    for name in ("audio_emb", "grounded"):
        after, before = (np.asarray(getattr(x, name))[others] for x in (changed, packed))
        np.testing.assert_allclose(after, before, atol=1e-6)
    assert np.abs(changed.audio_emb[5] - packed.audio_emb[5]).max() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"terms": TERMS[1:]}, "must be a ContrastiveTerm"),
        ({"terms": (*TERMS, CaptioningTerm())}, "one term of a kind"),
        ({"terms": (*TERMS[:3], ReconstructionTerm(weight=0.0))}, "must be positive"),
        ({"terms": (*TERMS[:3], ReconstructionTerm(sources=(-1,)))}, "count from 0"),
        ({"terms": TERMS[:3]}, "model.patch_decoder go together"),
        ({"terms": (*TERMS[:2], TERMS[3])}, "set matching_head to False"),
    ],
)
def test_what_does_not_fit_says_what_to_change(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_sources_want_a_mixture():
    objective = build_multi_task(MIXED)
    with pytest.raises(UserError, match="mixture"):
        jax.eval_shape(
            lambda v, b: objective.loss(v, b, None, train=False),
            jax.eval_shape(objective.init, jax.random.key(0)),
            make_batch(ROWS),
        )
