"""Training on batches of shorter recordings: the loss of the same recordings padded to a whole clip, for less work."""

import dataclasses

import jax
import numpy as np
import pytest
from test_language_modeling_objective import CONFIG as LANGUAGE_MODELING
from test_language_modeling_objective import make_prompted
from training_batches import make_batch

from alm_jax.encoders.audio.packed_vit import NANO as PACKED
from alm_jax.errors import UserError
from alm_jax.objectives import build_objective
from alm_jax.objectives.recordings import one_clip
from alm_jax.ops.frontends import BeatsSpec, ClipSpec
from alm_jax.run.experiment import check_experiment
from alm_jax.training.accumulation import loss_and_gradients
from data_pipelines.config import DurationBucketsConfig

WINDOW, SHORT = 400, 2800  # samples of a frame; of the shorter batches
FRONTEND = BeatsSpec(hop_samples=160, num_mels=16, clip=ClipSpec(clip_sec=4096 / 16_000, pad="zero"))
AUDIO = dataclasses.replace(
    PACKED, num_frames=32, num_mels=16, width=16, num_layers=1, num_heads=2, mlp_dim=16, row_steps=4
)


def packed(config):
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, frontend=FRONTEND, audio=AUDIO, padding="masked")
    )


def shorten(batch):
    """The batch with recordings of up to 2400 samples: padded to 4096, and to no more than they need."""
    lengths = np.minimum(batch["audio_num_samples"], SHORT - WINDOW)
    audio = batch["audio"] * (np.arange(4096) < lengths[:, None])
    long = batch | {"audio": audio.astype(np.int16), "audio_num_samples": lengths}
    return long, long | {"audio": long["audio"][:, :SHORT]}


@pytest.fixture(params=["contrastive", "language_modeling"])
def case(request, objective_config):
    """A config, and a batch of 8 for it."""
    if request.param == "contrastive":
        return packed(objective_config), make_batch(8)
    return packed(LANGUAGE_MODELING), make_prompted(8, 0)


def test_padding_that_is_left_out_changes_neither_loss_nor_gradients(case):
    config, batch = case
    assert config.follows_batch
    objective = build_objective(config)
    variables = objective.init(jax.random.key(0))

    @jax.jit
    def compute(batch):
        return loss_and_gradients(objective, variables, batch, jax.random.key(1), num_microbatches=1)[:2]

    long, short = shorten(batch)
    lowered = [compute.lower(own).cost_analysis()["flops"] for own in (long, short)]
    assert lowered[1] < lowered[0]
    for a, b in zip(jax.tree.leaves(compute(long)), jax.tree.leaves(compute(short)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_clips_of_evaluation_and_of_encoders_of_one_length_stay_whole(case, objective_config):
    config, batch = case
    _, short = shorten(batch)
    model = config.model
    placed = jax.tree.map(jax.numpy.asarray, short)
    clips = one_clip(model.frontend, placed, padding="masked", follows_batch=True)
    assert clips.features.shape[1] == model.frontend.num_frames
    assert not objective_config.follows_batch
    unmasked = dataclasses.replace(model, padding="unmasked")
    assert not dataclasses.replace(config, model=unmasked).follows_batch


def test_a_budget_of_samples_is_refused_where_the_model_computes_whole_clips(load_tiny):
    config = load_tiny("tiny_config")
    buckets = DurationBucketsConfig(longest_sec=(0.5,), fill=True)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, duration_buckets=buckets))
    with pytest.raises(UserError, match=r"data\.duration_buckets\.fill is True.*packed_vit"):
        check_experiment(config)
