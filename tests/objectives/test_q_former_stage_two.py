"""BLIP-2's second stage: two heads that begin with the audio tower and the queries of a Q-Former that was trained."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alm_jax.encoders.audio.whisper import WhisperEncoderConfig
from alm_jax.encoders.text.gpt2 import Gpt2Config
from alm_jax.models import audio_q_former, two_heads
from alm_jax.models.audio_q_former import AudioQFormerConfig
from alm_jax.models.connectors import QFormerConnectorConfig
from alm_jax.models.q_former import QFormerConfig, query_audio
from alm_jax.models.two_heads import TwoHeadsConfig
from alm_jax.objectives import build_objective
from alm_jax.objectives.language_modeling import LanguageModelingConfig
from alm_jax.ops.frontends import AstSpec, ClipSpec
from alm_jax.training.initialise import InitFromConfig, take_from
from alm_jax.training.state import init_state

FRONTEND = AstSpec(hop_samples=320, num_mels=16, padded_frames=32, clip=ClipSpec(clip_sec=0.6))
AUDIO = WhisperEncoderConfig(num_mels=16, max_positions=16, width=16, num_layers=1, num_heads=2, mlp_dim=16)
Q_FORMER = QFormerConfig(num_queries=3, width=24, num_layers=2, num_heads=2, mlp_dim=16)


@pytest.mark.slow
def test_two_heads_begin_with_a_q_former_and_hear_as_it_does():
    first = AudioQFormerConfig(
        frontend=FRONTEND, audio=AUDIO, q_former=Q_FORMER, vocab_size=32, max_positions=8, embed_dim=8
    )
    variables = audio_q_former.AUDIO_Q_FORMER.init(first, jax.random.key(7))
    second = TwoHeadsConfig(
        frontend=FRONTEND,
        audio=AUDIO,
        connector=QFormerConnectorConfig(q_former=dataclasses.replace(Q_FORMER, dropout=0.0)),
        language_model=Gpt2Config(vocab_size=32, width=16, num_layers=1, num_heads=2, max_positions=16),
    )
    objective = build_objective(LanguageModelingConfig(model=second))
    state = init_state(objective, optax.sgd(0.1), 0, with_ema=False)
    for part, into in (("audio", "audio"), ("q_former", "connector/q_former")):
        state, said = take_from(state, variables, InitFromConfig(source="stage one", part=part, into=into))
    # What reads text stays behind.
    assert "not used: groups/block_0/mlp/down/bias" in said

    features = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 16)), jnp.float32)

    @jax.jit
    def query(variables, features):
        encoded, _ = audio_q_former.encode_audio(first, variables, features)
        return query_audio(Q_FORMER, variables["params"]["q_former"], *encoded)

    queried = np.asarray(query(variables, features), np.float64)
    linear = state.params["connector"]["linear"]
    want = queried @ np.asarray(linear["kernel"], np.float64) + np.asarray(linear["bias"])
    taken = {"params": state.params, "batch_stats": state.batch_stats}
    found = jax.jit(functools.partial(two_heads.encode_audio, second))(taken, features)[0]
    assert found.vectors.shape == (2, 3, 16)
    assert found.mask.all()
    np.testing.assert_allclose(found.vectors, want, atol=1e-5)
