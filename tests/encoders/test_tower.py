"""Any encoder of the zoo as a tower of the two-tower model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.encoders import tower
from alm_jax.encoders.audio import htsat, packed_vit
from alm_jax.encoders.families import FAMILIES, audio_families, text_families
from alm_jax.encoders.text import bert, llama
from alm_jax.errors import UserError
from alm_jax.models.two_towers import TWO_TOWERS, TwoTowersConfig, encode_audio, encode_text
from alm_jax.ops.frontends import AstSpec, ClapSpec, ClipSpec, FusionSpec, WaveformSpec, feature_shape
from alm_jax.run.config_json import from_json, to_json

CLIP = ClipSpec(clip_sec=1.0, pad="zero")


def frontend_for(config):
    """A front-end of one second that feeds ``config``."""
    if isinstance(FAMILIES["wav2vec2"].variants["nano"], type(config)):
        return WaveformSpec(clip=CLIP)
    sizes = {"sample_rate_hz": 16000, "num_mels": config.num_mels, "fmax_hz": 8000.0, "clip": CLIP}
    if tower.takes(config, "longer"):
        return FusionSpec(**sizes)
    return AstSpec(**sizes, padded_frames=128)


def two_towers(audio, text):
    return TwoTowersConfig(frontend=frontend_for(audio), audio=audio, text=text, embed_dim=8)


@pytest.mark.parametrize("name", [family.name for family in audio_families()])
def test_every_audio_encoder_gives_a_vector_a_clip(name):
    config = two_towers(FAMILIES[name].variants["nano"], bert.NANO)
    variables = TWO_TOWERS.abstract(config)
    features = jax.ShapeDtypeStruct((3, *feature_shape(config.frontend)), jnp.float32)
    longer = jnp.zeros(3, bool)

    def run(variables, features, key):
        own = {"longer": longer} if tower.takes(config.audio, "longer") else {}
        return encode_audio(config, variables, features, train=True, key=key, **own)

    if tower.takes(config.audio, "train") and tower.takes(config.audio, "mask"):
        features = jax.ShapeDtypeStruct((4, *features.shape[1:]), jnp.float32)
        longer = jnp.zeros(4, bool)
    emb, stats = jax.eval_shape(run, variables, features, jax.random.key(0))
    assert emb.shape == (features.shape[0], 8)
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])
    is_names = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    axes = TWO_TOWERS.axes(config)
    assert jax.tree.structure(axes, is_leaf=is_names) == jax.tree.structure(variables["params"])
    assert from_json(to_json(config), TwoTowersConfig) == config


@pytest.mark.parametrize("name", [family.name for family in text_families()])
def test_every_text_encoder_gives_a_vector_a_caption(name):
    config = two_towers(htsat.NANO, FAMILIES[name].variants["nano"])
    ids, mask = jax.ShapeDtypeStruct((3, 5), jnp.int32), jax.ShapeDtypeStruct((3, 5), jnp.bool_)
    emb = jax.eval_shape(
        lambda v, ids, mask, key: encode_text(config, v, ids, mask, train=True, key=key),
        TWO_TOWERS.abstract(config),
        ids,
        mask,
        jax.random.key(0),
    )
    assert emb.shape == (3, 8)
    assert from_json(to_json(config), TwoTowersConfig) == config


def test_the_zoo_has_towers_of_either_kind():
    assert {"htsat", "audio_mae", "ast", "whisper_encoder", "wav2vec2", "packed_vit"} <= {
        family.name for family in audio_families()
    }
    assert {"bert", "t5_encoder", "gpt2", "llama"} <= {family.name for family in text_families()}
    assert "whisper" not in {family.name for family in text_families()}


def test_a_language_model_is_heard_at_its_last_real_token():
    config = dataclasses.replace(llama.NANO, num_layers=1, width=32, num_heads=2, num_kv_heads=1, mlp_dim=32)
    variables = jax.jit(lambda key: tower.init_text_tower(config, key)[0])(jax.random.key(0))
    assert "head" not in variables["params"]
    ids = jnp.asarray([[5, 6, 7, 8], [5, 6, 0, 0]])
    mask = ids > 0

    @jax.jit
    def embed(ids, mask):
        return tower.apply_text_tower(
            config, variables, ids, mask, dtype=jnp.float32, remat="none", train=False, key=None
        )

    padded = embed(ids, mask)
    np.testing.assert_allclose(padded[1], embed(ids[1:, :2], mask[1:, :2])[0], atol=1e-6)
    assert float(jnp.max(jnp.abs(padded[0] - padded[1]))) > 0.01


def test_frames_of_padding_are_counted_from_samples():
    audio = dataclasses.replace(packed_vit.NANO, num_mels=64)
    spec = ClapSpec(sample_rate_hz=16000, hop_samples=160, fmax_hz=8000.0, clip=CLIP)
    config = TwoTowersConfig(frontend=spec, audio=audio, text=bert.NANO, padding="masked")
    mask = np.asarray(tower.frame_mask(config.frontend, config.padding, jnp.asarray([0, 1, 160, 161, 16000])))
    assert mask.shape == (5, 101)
    np.testing.assert_array_equal(mask.sum(axis=1), [0, 1, 1, 2, 100])
    assert tower.frame_mask(config.frontend, "unmasked", jnp.asarray([1])) is None


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="HtsatConfig accepts no mask of frames"):
        dataclasses.replace(two_towers(htsat.NANO, bert.NANO), padding="masked")
    spec = FusionSpec(sample_rate_hz=16000, fmax_hz=8000.0, clip=CLIP)
    with pytest.raises(UserError, match="FusionSpec does not feed HtsatConfig"):
        TwoTowersConfig(frontend=spec, audio=htsat.NANO, text=bert.NANO)
    with pytest.raises(UserError, match="belongs to no family"):
        tower.build_tower(CLIP)
