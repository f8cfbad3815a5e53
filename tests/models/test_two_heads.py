"""Two heads: what is read in which order, every language model, and Qwen2-Audio as one of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.encoders import family
from alm_jax.encoders.audio import cav_mae, htsat, whisper
from alm_jax.encoders.text import bart, gpt2, llama, t5
from alm_jax.errors import UserError
from alm_jax.models import qwen2_audio
from alm_jax.models.connectors import (
    DirectConnectorConfig,
    LinearConnectorConfig,
    MapperConnectorConfig,
    MlpConnectorConfig,
)
from alm_jax.models.generation import generate
from alm_jax.models.two_heads import (
    TWO_HEADS,
    EncodedAudio,
    Prompts,
    TwoHeadsConfig,
    assemble,
    count_vectors,
    encode_audio,
    open_answers,
    predict,
)
from alm_jax.nn.language_model import head_kernel, project
from alm_jax.ops.frontends import AstSpec, ClapSpec, ClipSpec, WhisperSpec
from alm_jax.run.config_json import from_json, to_json

TINY = {"vocab_size": 40, "width": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
LANGUAGE_MODELS = {
    "gpt2": dataclasses.replace(gpt2.NANO, **TINY),
    "llama": dataclasses.replace(llama.NANO, num_kv_heads=1, **TINY),
    "qwen2": dataclasses.replace(llama.QWEN2_NANO, num_kv_heads=1, **TINY),
    "t5": dataclasses.replace(t5.NANO, num_decoder_layers=1, head_dim=8, **TINY),
    "bart": dataclasses.replace(bart.NANO, num_decoder_layers=1, **TINY),
}
CONFIG = TwoHeadsConfig(
    frontend=WhisperSpec(
        sample_rate_hz=8000,
        n_fft=256,
        num_mels=16,
        fmax_hz=4000.0,
        clip=ClipSpec(clip_sec=0.32, pad="zero"),
    ),
    audio=whisper.WhisperEncoderConfig(
        num_mels=16, max_positions=8, width=16, num_layers=1, num_heads=2, mlp_dim=16
    ),
    connector=LinearConnectorConfig(pool_size=2),
    language_model=LANGUAGE_MODELS["gpt2"],
    padding="masked",
)


def test_audio_stands_where_the_prompt_says_and_padding_behind_everything():
    """By lists, in the order in which they are read; -1 to -3 are the three vectors of a clip."""
    vectors = -np.arange(1.0, 4.0)[None, :, None] * np.ones((3, 1, 2))
    encoded = EncodedAudio(
        jnp.asarray(vectors, jnp.float32), jnp.asarray([[True] * 3, [True, True, False], [False] * 3])
    )
    prompts = Prompts(
        jnp.asarray([[10, 11, 12], [13, 14, 0], [0, 0, 0]], jnp.int32),
        jnp.asarray([[True] * 3, [True, True, False], [False] * 3]),
        jnp.asarray([1, 2, 0], jnp.int32),
    )
    answer = jnp.asarray([[20, 21], [22, 0], [23, 24]], jnp.int32)
    answer_mask = jnp.asarray([[True, True], [True, False], [True, True]])
    whole = assemble(encoded, prompts, answer, answer_mask)
    expected = [[10, -1, -2, -3, 11, 12, 20, 21], [13, 14, -1, -2, 22], [23, 24]]
    for row, right in enumerate(expected):
        real = np.asarray(whole.mask[row])
        assert real.tolist() == [True] * len(right) + [False] * (8 - len(right))
        read = np.where(whole.embeds_mask[row], whole.embeds[row, :, 0], whole.ids[row])
        assert read[real].tolist() == right
        before_answer = np.asarray(whole.prefix[row])[real]
        assert before_answer.tolist() == [item not in answer[row].tolist() for item in right]
    # Where the texts are, so that what predicts them can be found.
    assert np.asarray(whole.places[0]).tolist() == [0, 4, 5, 6, 7]
    assert np.asarray(whole.places[1])[[0, 1, 3]].tolist() == [0, 1, 4]


def make_inputs(seed=0):
    """Three clips, the second short, with prompts of different lengths and places for the audio."""
    rng = np.random.default_rng(seed)
    features = jnp.asarray(rng.normal(size=(3, 32, 16))[:, :16], jnp.float32)
    frame_mask = jnp.arange(16)[None, :] < jnp.asarray([[16], [9], [16]])
    prompts = Prompts(
        jnp.asarray(rng.integers(5, 39, (3, 4)), jnp.int32),
        jnp.arange(4)[None, :] < jnp.asarray([[4], [2], [3]]),
        jnp.asarray([0, 1, 3], jnp.int32),
    )
    answers = jnp.asarray(rng.integers(5, 39, (3, 5)), jnp.int32)
    return features, frame_mask, prompts, answers, jnp.arange(5)[None, :] < jnp.asarray([[5], [3], [4]])


def small(config):
    """The config for the clips of `make_inputs`."""
    return dataclasses.replace(
        config,
        frontend=dataclasses.replace(
            config.frontend, clip=ClipSpec(clip_sec=0.16, pad="zero"), hop_samples=80
        ),
    )


def kinds():
    fast = ("gpt2", "t5")
    return [pytest.param(name, marks=[] if name in fast else [pytest.mark.slow]) for name in LANGUAGE_MODELS]


@pytest.mark.parametrize("name", kinds())
def test_what_is_written_is_what_is_predicted(name):
    """Greedy tokens, read again as the answers, are the likeliest after those before them: one path and the other."""
    has_encoder = name in ("t5", "bart")
    config = dataclasses.replace(
        small(CONFIG),
        language_model=LANGUAGE_MODELS[name],
        prefix="causal" if has_encoder else "bidirectional",
    )
    variables = TWO_HEADS.init(config, jax.random.key(1))
    # Of small random weights every token is as likely as the next one.
    variables = jax.tree.map(lambda x: 3 * x, variables)
    features, frame_mask, prompts, _, _ = make_inputs()

    @jax.jit
    def write(variables):
        encoded, _ = encode_audio(config, variables, features, frame_mask)
        opening = open_answers(config, variables, encoded, prompts)
        written = generate(*opening[:5], num_new_tokens=5, end_id=-1, **opening.options)
        found = predict(config, variables, encoded, prompts, written.ids, written.mask)
        kernel, tied = head_kernel(config.language_model, variables["params"]["language_model"])
        return encoded, written, project(found.states, kernel, tied=tied), found.mask

    encoded, written, logits, counts = write(variables)
    assert encoded.mask.sum(axis=1).tolist() == [4, 2, 4]
    assert counts.all()
    chosen = np.take_along_axis(np.asarray(logits), np.asarray(written.ids)[:, :, None], axis=-1)[..., 0]
    np.testing.assert_allclose(chosen, logits.max(axis=-1), atol=1e-4)
    score = np.sum(chosen - jax.nn.logsumexp(logits, axis=-1), axis=1)
    np.testing.assert_allclose(score, written.score, atol=1e-4)
    assert len(np.unique(written.ids)) > 2


def test_padding_of_audio_prompt_and_answer_changes_nothing():
    config = small(CONFIG)
    variables = TWO_HEADS.init(config, jax.random.key(0))

    @functools.partial(jax.jit, static_argnames="loss_on")
    def read(features, frame_mask, prompts, answers, answer_mask, loss_on="all"):
        encoded, _ = encode_audio(config, variables, features, frame_mask)
        return predict(config, variables, encoded, prompts, answers, answer_mask, loss_on=loss_on)

    features, frame_mask, prompts, answers, answer_mask = make_inputs()
    found = read(features, frame_mask, prompts, answers, answer_mask)
    other = read(
        jnp.where(frame_mask[:, :, None], features, 9.0),
        frame_mask,
        prompts._replace(ids=jnp.where(prompts.mask, prompts.ids, 7)),
        jnp.where(answer_mask, answers, 8),
        answer_mask,
    )
    np.testing.assert_allclose(
        jnp.where(found.mask[:, :, None], found.states, 0),
        jnp.where(found.mask[:, :, None], other.states, 0),
        atol=1e-5,
    )
    # Of a prompt only what follows text counts: not its first token, and not the one after the audio.
    np.testing.assert_array_equal(
        found.mask[:, :4], [[False, True, True, True], [False] * 4, [False, True, True, False]]
    )
    np.testing.assert_array_equal(found.mask[:, 4:], answer_mask)
    np.testing.assert_array_equal(found.labels, jnp.concatenate([prompts.ids, answers], axis=1))


def test_qwen2_audio_is_a_model_of_two_heads():
    """The same parameters under other names give the same logits of the answer and the same words."""
    published = dataclasses.replace(
        qwen2_audio.NANO,
        encoder=dataclasses.replace(CONFIG.audio, pool_size=2, compat=True),
        language_model=dataclasses.replace(LANGUAGE_MODELS["qwen2"], tied_head=False),
        audio_token_id=39,
    )
    config = dataclasses.replace(
        small(CONFIG),
        audio=published.encoder,
        connector=LinearConnectorConfig(),
        language_model=published.language_model,
    )
    params = family.init(qwen2_audio.FAMILY, published, jax.random.key(0))["params"]
    variables = {
        "params": {
            "audio": params["encoder"],
            "connector": {"linear": params["projector"]},
            "language_model": params["language_model"],
        },
        "batch_stats": {"audio": {}},
    }
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, TWO_HEADS.abstract(config))
    features, frame_mask, prompts, answers, answer_mask = make_inputs()
    frames = [16, 9, 16]

    def expand(row):
        tokens = np.asarray(prompts.ids[row])[np.asarray(prompts.mask[row])].tolist()
        tokens.insert(int(prompts.audio_position[row]), 39)
        return qwen2_audio.expand_audio_tokens(published, tokens, [frames[row]]).tolist()

    texts = [expand(row) for row in range(3)]
    whole = [
        text + np.asarray(answers[i])[np.asarray(answer_mask[i])].tolist() for i, text in enumerate(texts)
    ]
    ids = np.zeros((3, max(map(len, whole))), np.int32)
    for row, tokens in enumerate(whole):
        ids[row, : len(tokens)] = tokens
    mask = np.arange(ids.shape[1])[None] < np.array([len(tokens) for tokens in whole])[:, None]

    ids, mask = jnp.asarray(ids), jnp.asarray(mask)

    @jax.jit
    def compare(params, variables):
        logits = family.apply(
            qwen2_audio.FAMILY,
            published,
            {"params": params},
            ids,
            mask,
            features[:, None],
            frame_mask[:, None],
        )
        encoded, _ = encode_audio(config, variables, features, frame_mask)
        found = predict(config, variables, encoded, prompts, answers, answer_mask)
        kernel, tied = head_kernel(config.language_model, variables["params"]["language_model"])
        return logits, project(found.states, kernel, tied=tied)

    logits, own = compare(params, variables)
    for row, text in enumerate(texts):
        length = int(answer_mask[row].sum())
        start = len(text) - 1
        np.testing.assert_allclose(own[row, :length], logits[row, start : start + length], atol=1e-5)


@pytest.mark.parametrize(
    ("audio", "frontend", "connector", "count"),
    [
        (htsat.NANO, ClapSpec(sample_rate_hz=16000, num_mels=64, fmax_hz=8000.0, clip=ClipSpec(clip_sec=1.0)),
         MapperConnectorConfig(num_vectors=3, num_inputs=2, num_layers=1, num_heads=2, mlp_dim=16), 3),
        (dataclasses.replace(cav_mae.NANO, prompt_width=16),
         AstSpec(sample_rate_hz=16000, num_mels=64, fmax_hz=8000.0, padded_frames=128, clip=ClipSpec(clip_sec=1.0)),
         DirectConnectorConfig(), 4),
        (whisper.NANO, WhisperSpec(num_mels=40, clip=ClipSpec(clip_sec=1.0, pad="zero")),
         MlpConnectorConfig(mlp_dim=8, pool_size=5), 10),
    ],
    ids=["clapcap", "ltu", "mlp"],
)  # fmt: skip
def test_towers_and_connectors_make_vectors(audio, frontend, connector, count):
    config = TwoHeadsConfig(
        frontend=frontend, audio=audio, connector=connector, language_model=LANGUAGE_MODELS["gpt2"]
    )
    assert count_vectors(config) == count
    variables = TWO_HEADS.abstract(config)
    is_names = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    assert jax.tree.structure(TWO_HEADS.axes(config), is_leaf=is_names) == jax.tree.structure(
        variables["params"]
    )
    assert from_json(to_json(config), TwoHeadsConfig) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language_model": LANGUAGE_MODELS["t5"], "prefix": "bidirectional"}, "always is"),
        ({"audio": htsat.NANO, "frontend": ClapSpec(sample_rate_hz=16000, num_mels=64, fmax_hz=8000.0,
          clip=ClipSpec(clip_sec=1.0))}, "cannot tell which of its states"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)
