"""Standardised waveforms against transformers' feature extractor."""

import jax.numpy as jnp
import numpy as np
import transformers

from alm_jax.ops.waveform_norm import standardise_waveform


def test_equals_the_feature_extractor():
    rng = np.random.default_rng(0)
    rows = [rng.normal(0.1, 0.05, size=length).astype(np.float32) for length in (500, 320)]
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    expected = extractor(rows, sampling_rate=16000, padding=True, return_tensors="np")
    mask = expected["attention_mask"].astype(bool)
    waveform = np.full((2, 500), 7.0, np.float32)
    for i, row in enumerate(rows):
        waveform[i, : len(row)] = row
    actual = standardise_waveform(jnp.asarray(waveform), jnp.asarray(mask))
    np.testing.assert_allclose(actual, expected["input_values"], atol=1e-5)
    np.testing.assert_allclose(
        standardise_waveform(jnp.asarray(rows[1][None]))[0], actual[1, :320], atol=1e-6
    )
