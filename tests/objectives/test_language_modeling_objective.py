"""Language modelling after audio: its formula, exact in pieces, on a mesh and under pmap, and adapted alone by LoRA."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_batches import make_batch

from alm_jax.encoders.audio.whisper import WhisperEncoderConfig
from alm_jax.encoders.text.llama import Qwen2Config
from alm_jax.encoders.text.t5 import T5Config
from alm_jax.errors import UserError
from alm_jax.models.connectors import LinearConnectorConfig
from alm_jax.models.two_heads import TwoHeadsConfig, encode_audio, predict
from alm_jax.nn.language_model import head_kernel
from alm_jax.objectives import build_objective
from alm_jax.objectives.language_modeling import LanguageModelingConfig, read_prompts
from alm_jax.objectives.recordings import one_clip
from alm_jax.ops.frontends import ClipSpec, WhisperSpec
from alm_jax.training.accumulation import loss_and_gradients
from alm_jax.training.lora import ADAPTERS, LoraConfig, add_adapters
from alm_jax.training.mesh import MeshConfig, build_mesh
from alm_jax.training.parameter_paths import parameter_paths
from alm_jax.training.sharding import parameter_shardings, place_batch
from alm_jax.training.trainable import freeze

ROWS, NUM_PADDING = 8, 2
CONFIG = LanguageModelingConfig(
    model=TwoHeadsConfig(
        frontend=WhisperSpec(
            sample_rate_hz=8000,
            n_fft=256,
            hop_samples=160,
            num_mels=8,
            fmax_hz=4000.0,
            clip=ClipSpec(clip_sec=0.5, pad="zero", train_crop="centre"),
        ),
        audio=WhisperEncoderConfig(
            num_mels=8, max_positions=13, width=16, num_layers=1, num_heads=2, mlp_dim=16
        ),
        connector=LinearConnectorConfig(pool_size=2),
        language_model=Qwen2Config(
            vocab_size=64,
            width=16,
            num_layers=1,
            num_heads=2,
            num_kv_heads=2,
            mlp_dim=16,
            max_positions=64,
            tied_head=True,
            kernel_init="fan_in",
        ),
        padding="masked",
    ),
    loss_on="all",
    label_smoothing=0.1,
    z_loss=0.01,
)


def make_prompted(rows=ROWS, num_padding=NUM_PADDING):
    """A batch of noise with prompts of different lengths and places for the audio."""
    batch, rng = make_batch(rows, num_padding=num_padding), np.random.default_rng(1)
    lengths = rng.integers(0, 5, rows) * batch["mask"]
    return batch | {
        "prompt_ids": rng.integers(5, 64, (rows, 4)).astype(np.int32),
        "prompt_mask": np.arange(4)[None] < lengths[:, None],
        "audio_position": rng.integers(0, lengths + 1).astype(np.int32),
    }


@functools.cache
def variables():
    return build_objective(CONFIG).init(jax.random.key(0))


@functools.cache
def compiled(num_microbatches):
    """batch -> loss, gradients, batch_stats, metrics."""
    objective = build_objective(CONFIG)

    @jax.jit
    def compute(variables, batch):
        return loss_and_gradients(
            objective, variables, batch, jax.random.key(1), num_microbatches=num_microbatches
        )

    return lambda batch: jax.device_get(compute(variables(), batch))


def assert_close(found, expected, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), found, expected)


def test_pieces_equal_the_whole_padding_rows_do_not_count_and_everything_learns():
    batch = make_prompted()
    loss, grads, _, _ = compiled(1)(batch)
    pieces, piece_grads, _, _ = compiled(2)(batch)
    np.testing.assert_allclose(pieces, loss, rtol=1e-6)
    assert_close(piece_grads, grads)
    other = dict(batch)
    other["audio"] = np.where(batch["mask"][:, None], batch["audio"], 9999).astype(np.int16)
    other["text_ids"] = np.where(batch["mask"][:, None], batch["text_ids"], 7).astype(np.int32)
    other["text_mask"] = batch["text_mask"] | ~batch["mask"][:, None]
    other["audio_num_samples"] = np.where(batch["mask"], batch["audio_num_samples"], 4096).astype(np.int32)
    np.testing.assert_allclose(compiled(1)(other)[0], loss, rtol=1e-6)
    still = [path for path, grad in zip(*map(jax.tree.leaves, (parameter_paths(grads), grads)), strict=True)
             if not np.any(grad)]  # fmt: skip
    assert still == []


def test_the_loss_is_its_formula():
    """In float64 NumPy, of the model's states: smoothed cross-entropy and the square of the log-sum-exp."""
    batch = jax.tree.map(jnp.asarray, make_prompted())
    objective = build_objective(CONFIG)

    @jax.jit
    def compute(variables, batch):
        model = CONFIG.model
        clips = one_clip(model.frontend, batch, padding=model.padding)
        encoded, _ = encode_audio(model, variables, clips.features, clips.frame_mask)
        found = predict(
            CONFIG.model,
            variables,
            encoded,
            read_prompts(batch),
            batch["text_ids"],
            batch["text_mask"],
            loss_on="all",
        )
        return found, objective.loss(variables, batch, None, train=False)[0]

    found, loss = compute(variables(), batch)
    table = np.asarray(head_kernel(CONFIG.model.language_model, variables()["params"]["language_model"])[0])
    logits = np.asarray(found.states, np.float64) @ table.astype(np.float64).T
    lse = np.log(np.exp(logits).sum(axis=-1))
    right = np.take_along_axis(logits, np.asarray(found.labels)[:, :, None], axis=-1)[..., 0]
    losses = lse - 0.9 * right - 0.1 * logits.mean(axis=-1) + 0.01 * lse**2
    # Counted by hand: real answers whole; of a prompt what follows a token of it, and not the audio.
    counts = np.asarray(batch["text_mask"] & batch["mask"][:, None])
    place = np.arange(4)[None]
    prompts = (
        np.asarray(batch["prompt_mask"])
        & (place > 0)
        & (place != np.asarray(batch["audio_position"])[:, None])
    )
    # A recording that is too short for one vector lets the prompt run on.
    assert (np.asarray(batch["audio_num_samples"])[np.asarray(batch["mask"])] > 1000).all()
    counted = np.concatenate([prompts, counts], axis=1)
    np.testing.assert_array_equal(np.asarray(found.mask & batch["mask"][:, None]), counted)
    np.testing.assert_allclose(loss.sum / loss.weight, losses[counted].mean(), rtol=1e-5)
    assert loss.weight == counted.sum()


@pytest.mark.slow
def test_devices_change_nothing():
    """pmap over rows, and a mesh that cuts rows, parameters and words."""
    batch = make_prompted(num_padding=0)
    loss, grads, _, _ = compiled(1)(batch)
    objective = build_objective(CONFIG)

    def compute(variables, batch, axis_name=None):
        return loss_and_gradients(objective, variables, batch, jax.random.key(1), axis_name=axis_name)[:2]

    mapped = jax.pmap(functools.partial(compute, axis_name="batch"), axis_name="batch", in_axes=(None, 0),
                      devices=jax.devices()[:2])  # fmt: skip
    split = {name: value.reshape(2, -1, *value.shape[1:]) for name, value in batch.items()}
    pmap_loss, pmap_grads = jax.device_get(mapped(variables(), split))
    np.testing.assert_allclose(pmap_loss[0], loss, rtol=1e-5)
    assert_close(jax.tree.map(lambda x: x[0], pmap_grads), grads, atol=1e-5)

    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params = variables()["params"]
    placed = jax.device_put(params, parameter_shardings(objective.axes(), params, mesh))
    with jax.set_mesh(mesh):
        cut_loss, cut_grads = jax.jit(compute)(variables() | {"params": placed}, place_batch(batch, mesh))
    np.testing.assert_allclose(cut_loss, loss, rtol=1e-5)
    assert_close(jax.device_get(cut_grads), jax.device_get(grads), atol=1e-5)


def test_lora_and_frozen_paths_leave_adapters_and_the_connector_to_train():
    """As Qwen2-Audio's language model is adapted: kernels of queries and values, and the head, which is no block's."""
    config = dataclasses.replace(
        CONFIG,
        model=dataclasses.replace(
            CONFIG.model,
            language_model=dataclasses.replace(CONFIG.model.language_model, tied_head=False),
        ),
    )
    targets = (r"^language_model/blocks/attention/(query|value)/kernel$", r"^language_model/head/kernel$")
    objective = freeze(
        add_adapters(build_objective(config), LoraConfig(targets=targets, rank=2)),
        ("^audio/", "^language_model/"),
    )
    batch = jax.tree.map(jnp.asarray, make_prompted())
    drawn = objective.init(jax.random.key(0))
    # B is zero at first, and then A has no gradient.
    drawn["params"][ADAPTERS] = jax.tree.map(lambda x: x + 0.1, drawn["params"][ADAPTERS])

    @jax.jit
    def compute(variables, batch):
        merged = variables | {"params": objective.merge(variables["params"])}
        plain = build_objective(config).loss(merged, batch, None, train=False)[0]
        key = jax.random.key(1)
        return loss_and_gradients(objective, variables, batch, key)[:2], plain.sum / plain.weight

    (loss, grads), merged_loss = jax.device_get(compute(drawn, batch))
    np.testing.assert_allclose(loss, merged_loss, rtol=1e-5)
    paths = set(jax.tree.leaves(parameter_paths(grads)))
    adapted = [
        f"language_model/{name}/kernel"
        for name in ("blocks/attention/query", "blocks/attention/value", "head")
    ]
    assert paths == {f"connector/linear/{name}" for name in ("kernel", "bias")} | {
        f"{ADAPTERS}/{path}/{name}" for path in adapted for name in "ab"
    }
    assert all(np.any(grad) for grad in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": dataclasses.replace(CONFIG.model, language_model=T5Config())}, "use 'answer'"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_batches_without_prompts_are_refused():
    with pytest.raises(UserError, match=r"set data\.prompt"):
        build_objective(CONFIG).prepare(make_batch(2), None, train=False)
