"""Programs: written, read back with JAX alone, and equal to the model for batches of any size."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from alm_jax import batch as contract
from alm_jax.encoders import family
from alm_jax.encoders.text.bert import FAMILY, NANO
from alm_jax.errors import UserError
from alm_jax.interop import stablehlo
from alm_jax.models.two_towers import TWO_TOWERS
from alm_jax.objectives.contrastive import TwoTowers
from alm_jax.run.programs import export_programs


@pytest.fixture(scope="module")
def variables(nano_config):
    return jax.device_get(TWO_TOWERS.init(nano_config, jax.random.key(0)))


@pytest.fixture(scope="module")
def folder(nano_config, variables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    export_programs(nano_config, variables, folder)
    return folder


def test_programs_compute_what_the_model_computes(folder, nano_config, variables):
    """Read by `jax.export` itself, as a user without this project would; two sizes of a batch."""
    audio, text = (
        export.deserialize(bytearray((folder / f"{name}.stablehlo").read_bytes()))
        for name in ("audio", "text")
    )
    assert audio.platforms == text.platforms == ("cpu", "cuda", "tpu")
    rng = np.random.default_rng(0)
    samples, length = nano_config.frontend.clip_samples, nano_config.text.max_length
    waveforms = jnp.asarray(0.1 * rng.normal(size=(3, samples)), jnp.float32)
    num_samples = jnp.asarray([samples, 20_000, 999], jnp.int32)
    expected = TwoTowers(nano_config).embed_audio(
        variables, {contract.AUDIO: waveforms, contract.AUDIO_NUM_SAMPLES: num_samples}
    )
    np.testing.assert_allclose(audio.call(waveforms, num_samples), expected, atol=1e-6)
    np.testing.assert_allclose(audio.call(waveforms[:1], num_samples[:1]), expected[:1], atol=1e-6)

    ids = jnp.asarray(rng.integers(5, nano_config.text.vocab_size, (2, length)), jnp.int32)
    mask = jnp.arange(length)[None, :] < jnp.asarray([[length], [4]])
    expected = TwoTowers(nano_config).embed_text(variables, ids, mask)
    np.testing.assert_allclose(text.call(ids, mask), expected, atol=1e-6)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3


def test_the_signature_says_how_to_call_them(folder, nano_config):
    signature = json.loads((folder / "signature.json").read_text())
    assert signature["sample_rate_hz"] == 16000
    assert signature["logit_scale"] == pytest.approx(1 / 0.07)
    assert signature["programs"]["audio"] == [
        {"name": "waveforms", "shape": ["b", 80000], "dtype": "float32"},
        {"name": "num_samples", "shape": ["b"], "dtype": "int32"},
    ]
    assert [given["name"] for given in signature["programs"]["text"]] == ["ids", "mask"]


def test_a_model_of_the_zoo_is_one_program(tmp_path):
    variables = family.init(FAMILY, NANO, jax.random.key(0))
    export_programs(NANO, variables, tmp_path)
    length = FAMILY.example(NANO)[0].shape[1]
    ids = jnp.broadcast_to(jnp.arange(5, 8, dtype=jnp.int32)[:, None], (3, length))
    mask = jnp.ones((3, length), jnp.bool_)
    ours = family.apply(FAMILY, NANO, variables, ids, mask)
    program = jax.export.deserialize(bytearray((tmp_path / "encoder.stablehlo").read_bytes())).call
    np.testing.assert_allclose(program(ids, mask), ours, atol=1e-6)


def test_weights_that_do_not_fit_in_a_file_are_refused(monkeypatch):
    monkeypatch.setattr(stablehlo, "MAX_BYTES", 100)
    with pytest.raises(UserError, match="smaller dtype"):
        stablehlo.export_function(lambda v, x: v + x, np.zeros(100, np.float32), {})
