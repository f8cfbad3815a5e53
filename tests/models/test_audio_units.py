"""Units: the nearest centroids of what an encoder says of each moment, or a codec's first codes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.encoders import family
from alm_jax.encoders.audio import audio_mae, beats, encodec, wav2vec2, whisper
from alm_jax.encoders.families import family_of
from alm_jax.encoders.text.llama import LlamaConfig
from alm_jax.errors import UserError
from alm_jax.models.audio_units import (
    CepstraConfig,
    ClusterUnitsConfig,
    CodecUnitsConfig,
    check_units,
    frame_vectors,
    init_units,
    read_units,
)
from alm_jax.models.unit_language_model import UNIT_LANGUAGE_MODEL, UnitLanguageModelConfig
from alm_jax.objectives import build_objective
from alm_jax.objectives.unit_language_modeling import UnitLanguageModelingConfig
from alm_jax.ops.frontends import AstSpec, BeatsSpec, ClipSpec, WaveformSpec, WhisperSpec, feature_shape
from alm_jax.training.accumulation import loss_and_gradients

CLIP = ClipSpec(clip_sec=0.64, pad="zero")
WAVEFORM = WaveformSpec(clip=ClipSpec(clip_sec=0.2, pad="zero"))
CODEC = WaveformSpec(sample_rate_hz=24000, normalise=False, clip=ClipSpec(clip_sec=0.01, pad="zero"))
AST = AstSpec(hop_samples=160, num_mels=16, padded_frames=64, clip=CLIP)
MAE = audio_mae.AudioMaeConfig(
    num_frames=64, num_mels=16, patch_size=8, width=16, num_layers=1, num_heads=2, mlp_dim=16
)


def draw(config, frontend):
    """Variables of the units, features of two clips, the second half padding."""
    variables = nn.unbox(jax.jit(lambda key: init_units(config, frontend, key))(jax.random.key(0)))
    features = jax.random.normal(jax.random.key(1), (2, *feature_shape(frontend)))
    frames = frontend.num_frames
    return variables, features, jnp.arange(frames)[None] < jnp.array([[frames], [frames // 2]])


def test_patches_of_a_step_of_time_are_one_frame():
    config = ClusterUnitsConfig(num_units=5, frames=MAE)
    variables, features, mask = draw(config, AST)
    vectors, is_real = jax.jit(lambda *x: frame_vectors(config, *x))(variables["params"], features, mask)
    module = audio_mae.AudioMae(MAE, jnp.dtype("float32"), output="tokens")
    states = module.apply({"params": variables["params"]["encoder"]}, features[:1])
    np.testing.assert_allclose(vectors[0], states[0, 1:].reshape(8, 2 * 16), atol=1e-5)
    assert is_real.sum(axis=1).tolist() == [8, 4]
    clusters = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"]["clusters"])
    clusters["mean"], clusters["deviation"] = np.full(32, 0.3), np.linspace(0.5, 2, 32)
    variables["params"]["clusters"] = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), clusters)
    units, _ = jax.jit(lambda *x: read_units(config, *x))(variables, features, mask)
    standard = (np.asarray(vectors, np.float64) - clusters["mean"]) / clusters["deviation"]
    distance = np.square(standard[:, :, None] - clusters["centroids"]).sum(axis=-1)
    np.testing.assert_array_equal(units, distance.argmin(axis=-1))


@pytest.mark.parametrize(
    ("encoder", "frontend", "layer", "num_real"),
    [
        pytest.param(wav2vec2.NANO, WAVEFORM, 1, None, marks=pytest.mark.slow),
        pytest.param(whisper.NANO, WhisperSpec(num_mels=40, clip=CLIP), None, 32, marks=pytest.mark.slow),
        pytest.param(
            beats.NANO, BeatsSpec(num_mels=beats.NANO.num_mels, clip=CLIP), None, None, marks=pytest.mark.slow
        ),
    ],
    ids=["wav2vec2", "whisper", "beats"],
)
def test_padding_changes_no_unit_of_what_is_real(encoder, frontend, layer, num_real):
    config = ClusterUnitsConfig(num_units=50, frames=encoder, layer=layer)
    check_units(config, frontend)
    variables, features, mask = draw(config, frontend)
    read = jax.jit(lambda *x: read_units(config, *x))
    units, is_real = map(np.asarray, read(variables, features, mask))
    own = np.asarray(mask).reshape(*mask.shape, *(1,) * (features.ndim - 2))
    others, _ = read(variables, jnp.where(own, features, 7.0), mask)
    assert 0 < is_real[1].sum() <= is_real[0].sum() / 2 + 1
    assert num_real in (None, is_real[0].sum())
    np.testing.assert_array_equal(units[is_real], np.asarray(others)[is_real])
    assert len(np.unique(units[is_real])) > 3


@pytest.mark.slow
def test_codes_are_the_codecs_first():
    config = CodecUnitsConfig(codec=encodec.NANO)
    check_units(config, CODEC)
    variables, features, mask = draw(config, CODEC)
    units, is_real = jax.jit(lambda *x: read_units(config, *x))(variables, features, mask)
    whole = {name: tree["codec"] for name, tree in variables.items()}
    codes = family.apply(family_of(encodec.NANO), encodec.NANO, whole, features, mask=mask, method="encode")
    np.testing.assert_array_equal(units, codes[:, 0])
    assert is_real.sum(axis=1).tolist() == [30, 15]


@pytest.mark.parametrize(
    ("units", "frontend", "message"),
    [
        (CodecUnitsConfig(), AST, "WaveformSpec"),
        (ClusterUnitsConfig(frames=wav2vec2.NANO), AST, "does not feed"),
        (ClusterUnitsConfig(), WAVEFORM, "does not feed"),
        (ClusterUnitsConfig(frames=CepstraConfig(num_cepstra=17)), AST, "num_cepstra"),
    ],
)
def test_front_ends_that_do_not_feed_them_are_refused(units, frontend, message):
    with pytest.raises(UserError, match=message):
        check_units(units, frontend)


def test_speech_gpt_7b_is_a_config():
    """LLaMA-7B with 1000 units of mHuBERT's layer 11 and two tags (arXiv 2305.11000, section 4)."""
    config = UnitLanguageModelConfig(
        frontend=WaveformSpec(normalise=False, clip=ClipSpec(clip_sec=10.0, pad="zero")),
        units=ClusterUnitsConfig(num_units=1000, frames=wav2vec2.BASE, layer=11),
        language_model=LlamaConfig(vocab_size=32000 + 1000 + 2),
        compute_dtype="bfloat16",
        remat="block",
    )
    params = UNIT_LANGUAGE_MODEL.abstract(config)["params"]
    assert params["units"]["clusters"]["centroids"].shape == (1000, 768)
    count = sum(leaf.size for leaf in jax.tree.leaves(params["language_model"]))
    # 6,738,415,616 of LLaMA-7B, and a row and a column of 4096 for each of 1002 entries.
    assert count == 6738415616 + 2 * 1002 * 4096


def test_new_rows_begin_near_zero():
    config = UnitLanguageModelConfig(
        frontend=AST,
        units=ClusterUnitsConfig(num_units=40),
        language_model=LlamaConfig(
            vocab_size=142, width=32, num_layers=1, num_heads=2, num_kv_heads=1, mlp_dim=32
        ),
    )
    language_model = UNIT_LANGUAGE_MODEL.init(config, jax.random.key(0))["params"]["language_model"]
    for table in (language_model["token_embed"]["embedding"], language_model["head"]["kernel"].T):
        assert np.std(table[100:]) < 0.02 * np.std(table[:100])


@pytest.mark.slow
def test_an_objective_hears_through_a_codec():
    """Its codebooks lie among the statistics; nothing of it trains."""
    config = UnitLanguageModelingConfig(
        model=UnitLanguageModelConfig(
            frontend=CODEC,
            units=CodecUnitsConfig(codec=encodec.NANO),
            language_model=LlamaConfig(
                vocab_size=60 + 64 + 2, width=16, num_layers=1, num_heads=2, num_kv_heads=2, mlp_dim=16
            ),
        ),
        row_tokens=64,
    )
    objective = build_objective(config)
    variables = jax.eval_shape(objective.init, jax.random.key(0))
    assert variables["batch_stats"]["units"]["codec"]["codebooks"]["embed"].shape == (4, 64, 16)
    batch = make_audio_batch()
    loss, gradients, stats, _ = jax.eval_shape(
        lambda *given: loss_and_gradients(objective, *given, jax.random.key(0)), variables, batch
    )
    assert loss.shape == ()
    assert gradients.keys() == {"language_model"}
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])


def make_audio_batch():
    """Two recordings, as the contract says."""
    return {
        "audio": np.zeros((2, 400), np.int16),
        "audio_num_samples": np.full(2, 400, np.int32),
        "text_ids": np.zeros((2, 5), np.int32),
        "text_mask": np.ones((2, 5), bool),
        "mask": np.ones(2, bool),
        "index": np.arange(2, dtype=np.int32),
        "label": np.full(2, -1, np.int32),
    }
