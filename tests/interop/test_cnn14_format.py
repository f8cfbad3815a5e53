"""Archives of PANNs: weights come in and go out; the front-end's kernels stay out."""

import jax
import librosa
import numpy as np
import pytest

from alm_jax.encoders.audio.cnn14 import NANO
from alm_jax.interop.cnn14 import CNN14_ARCHIVE
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.interop.parity import load_oracle


@pytest.fixture(scope="module")
def archive() -> dict[str, np.ndarray]:
    """As torchlibrosa keeps its kernels beside the weights."""
    weights = {key: tensor.numpy() for key, tensor in load_oracle("cnn14").build(NANO).state_dict().items()}
    return weights | {
        "spectrogram_extractor.stft.conv_real.weight": np.zeros((513, 1, 1024), np.float32),
        "spectrogram_extractor.stft.conv_imag.weight": np.zeros((513, 1, 1024), np.float32),
        "logmel_extractor.melW": librosa.filters.mel(sr=32000, n_fft=1024, n_mels=64, fmin=50, fmax=14000).T,
    }


def test_the_weights_come_in_and_go_out_bit_for_bit_without_the_front_end(archive):
    config = CNN14_ARCHIVE.infer_config({key: array.shape for key, array in archive.items()})
    assert (config.channels, config.num_mels, config.num_classes) == (NANO.channels, NANO.num_mels, None)
    back = variables_to_arrays(CNN14_ARCHIVE, config, arrays_to_variables(CNN14_ARCHIVE, config, archive))
    assert {key for key in archive if "extractor" not in key} == back.keys()
    jax.tree.map(np.testing.assert_array_equal, back, {key: archive[key] for key in back})
