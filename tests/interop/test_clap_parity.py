"""Our two towers against `transformers.ClapModel` in PyTorch, with the same random weights.

Features are `ClapFeatureExtractor`'s on real clips, so that this compares towers alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.interop.clap_config import frontend_to_preprocessor
from alm_jax.interop.clap_weights import CLAP
from alm_jax.interop.format import arrays_to_variables
from alm_jax.models.two_towers import TwoTowersConfig, encode_audio, encode_text


def hash_captions(captions: list[str], config: TwoTowersConfig) -> tuple[np.ndarray, np.ndarray]:
    """A word an id, by its letters, between the special tokens; padded to the longest caption and 3 more."""
    rows = [
        [0, *(5 + sum(map(ord, word)) * 7919 % (config.text.vocab_size - 5) for word in caption.split()), 2]
        for caption in captions
    ]
    mask = np.arange(max(map(len, rows)) + 3)[None, :] < np.array([[len(row)] for row in rows])
    ids = np.full(mask.shape, config.text.pad_id, np.int32)
    ids[mask] = np.concatenate(rows)
    return ids, mask


def compute_differences(config: TwoTowersConfig, model, clips, captions) -> dict[str, float]:
    """Largest absolute difference of each output."""
    variables = arrays_to_variables(
        CLAP, config, {key: value.numpy() for key, value in model.state_dict().items()}
    )
    preprocessor = frontend_to_preprocessor(config.frontend)
    extractor = transformers.ClapFeatureExtractor.from_dict(preprocessor)
    inputs = extractor(clips, sampling_rate=config.frontend.sample_rate_hz, return_tensors="pt")
    ids, mask = hash_captions(captions, config)
    with torch.no_grad():
        theirs = model(**inputs, input_ids=torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long())
    variables = jax.tree.map(jnp.asarray, variables)
    features = jnp.asarray(inputs["input_features"].numpy()[:, 0])
    audio_emb = jax.jit(lambda v, x: encode_audio(config, v, x)[0])(variables, features)
    text_emb = jax.jit(lambda *a: encode_text(config, *a))(variables, jnp.asarray(ids), jnp.asarray(mask))
    logits = jnp.exp(variables["params"]["log_logit_scale"]) * audio_emb @ text_emb.T

    # An oracle that gave every clip one embedding would pass anything.
    for emb in (theirs.audio_embeds, theirs.text_embeds):
        similarity = (emb @ emb.T).numpy() - 2 * np.eye(len(emb))
        assert similarity.max() < 0.999
    pairs = {
        "audio": (audio_emb, theirs.audio_embeds),
        "text": (text_emb, theirs.text_embeds),
        "logits": (logits, theirs.logits_per_audio),
    }
    return {name: float(np.abs(np.asarray(a) - b.numpy()).max()) for name, (a, b) in pairs.items()}


@pytest.mark.parametrize("size", ["nano", pytest.param("tiny", marks=pytest.mark.slow)])
def test_features_and_logits_equal_transformers(request, build_clap, read_clips, captions, size):
    """Measured at both sizes: 1e-7 audio, 3e-7 text, 1e-6 logits."""
    config = request.getfixturevalue(f"{size}_config")
    clips = read_clips(config.frontend.sample_rate_hz)[:2]
    differences = compute_differences(config, build_clap(config), clips, captions[:5])
    assert max(differences.values()) < 1e-5, differences
