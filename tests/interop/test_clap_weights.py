"""Names and shapes of ClapModel on disk: what `save_pretrained` writes, and nothing else."""

import jax
import numpy as np
import pytest

from alm_jax.encoders.audio import htsat
from alm_jax.encoders.text import bert
from alm_jax.errors import UserError
from alm_jax.interop.clap_weights import CLAP
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.interop.safetensors_io import read_safetensors
from alm_jax.models.two_towers import TWO_TOWERS, TwoTowersConfig
from alm_jax.ops.frontends import ClapSpec, ClipSpec


@pytest.fixture(scope="module")
def saved(nano_config, build_clap, tmp_path_factory) -> dict[str, np.ndarray]:
    """The arrays of a file that `save_pretrained` wrote."""
    folder = tmp_path_factory.mktemp("saved")
    build_clap(nano_config).save_pretrained(folder)
    return read_safetensors(folder / "model.safetensors")


def test_export_of_an_import_is_the_file_bit_for_bit(nano_config, saved):
    back = variables_to_arrays(CLAP, nano_config, arrays_to_variables(CLAP, nano_config, saved))
    assert back.keys() == saved.keys()
    for key, value in saved.items():
        assert (back[key].dtype, back[key].shape) == (value.dtype, value.shape), key
        np.testing.assert_array_equal(back[key], value, err_msg=key)


def test_import_of_an_export_is_the_variables_bit_for_bit(nano_config):
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: np.asarray(rng.normal(size=leaf.shape), np.float32), TWO_TOWERS.abstract(nano_config)
    )
    back = arrays_to_variables(CLAP, nano_config, variables_to_arrays(CLAP, nano_config, variables))
    jax.tree.map(np.testing.assert_array_equal, back, variables)


@pytest.mark.parametrize(
    ("audio", "text"),
    [("tiny", "roberta_base"), ("base", "roberta_base"), ("large", "nano"), ("nano", "nano")],
)
def test_keys_cover_every_element_of_every_variant(audio, text):
    """Exactly as many numbers on disk as in our variables, and ``logit_scale_t``."""
    config = TwoTowersConfig(
        frontend=ClapSpec(clip=ClipSpec(clip_sec=2.0)), audio=htsat.VARIANTS[audio], text=bert.VARIANTS[text]
    )
    shapes = TWO_TOWERS.abstract(config)
    # One number each, seen at every place: full size without its memory.
    variables = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(1), leaf.shape), shapes)
    floats = [
        array for array in variables_to_arrays(CLAP, config, variables).values() if array.dtype == np.float32
    ]
    assert sum(array.size for array in floats) == sum(leaf.size for leaf in jax.tree.leaves(shapes)) + 1


def test_the_second_temperature_is_the_first(nano_config, saved):
    changed = saved | {"logit_scale_t": np.float32(1.25).reshape(())}
    back = variables_to_arrays(CLAP, nano_config, arrays_to_variables(CLAP, nano_config, changed))
    assert back["logit_scale_t"] == saved["logit_scale_a"]


def test_older_files_without_index_buffers_are_read(nano_config, saved):
    floats = {key: value for key, value in saved.items() if value.dtype == np.float32}
    assert len(floats) < len(saved)
    jax.tree.map(
        np.testing.assert_array_equal,
        arrays_to_variables(CLAP, nano_config, floats),
        arrays_to_variables(CLAP, nano_config, saved),
    )


def test_wrong_keys_are_all_listed(nano_config, saved):
    wrong = dict(saved)
    wrong["audio_model.head.weight"] = np.ones(3, np.float32)
    del wrong["text_model.pooler.dense.bias"]
    wrong["audio_projection.linear1.weight"] = wrong["audio_projection.linear1.weight"].T
    with pytest.raises(UserError) as raised:
        arrays_to_variables(CLAP, nano_config, wrong)
    message = str(raised.value)
    assert "3 problems" in message
    for expected in (
        "unknown audio_model.head.weight",
        "missing text_model.pooler.dense.bias",
        "audio_projection.linear1.weight has shape (256, 64), the config says (64, 256)",
    ):
        assert expected in message


def test_a_buffer_that_contradicts_the_config_is_named(nano_config, saved):
    key = "text_model.embeddings.position_ids"
    with pytest.raises(UserError, match=f"{key} is not what the config implies"):
        arrays_to_variables(CLAP, nano_config, saved | {key: saved[key] + 1})


def test_weights_of_another_size_are_refused(nano_config, saved, tiny_config):
    with pytest.raises(UserError, match=r"\.\.\."):
        arrays_to_variables(CLAP, tiny_config, saved)
