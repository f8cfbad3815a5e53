"""A two-tower model so small that a step compiles in seconds, shared by the tests of objectives and of training."""

import dataclasses

import pytest

from alm_jax.encoders.audio.htsat import HtsatConfig
from alm_jax.encoders.text.bert import BertConfig
from alm_jax.models.two_towers import TwoTowersConfig
from alm_jax.objectives.contrastive import ContrastiveConfig
from alm_jax.ops.frontends import ClapSpec, ClipSpec


@pytest.fixture(scope="session")
def objective_config() -> ContrastiveConfig:
    """No noise of any kind, so that different ways of running a step must agree."""
    return ContrastiveConfig(
        model=TwoTowersConfig(
            frontend=ClapSpec(
                sample_rate_hz=8000,
                n_fft=256,
                hop_samples=128,
                num_mels=16,
                fmax_hz=4000.0,
                clip=ClipSpec(clip_sec=0.5, train_crop="centre"),
            ),
            audio=HtsatConfig(
                spec_size=32,
                num_mels=16,
                embed_dim=16,
                depths=(1, 1),
                num_heads=(2, 2),
                window_size=4,
                drop_path_rate=0.0,
                spec_augment_time_stripes=0,
                spec_augment_freq_stripes=0,
            ),
            text=dataclasses.replace(
                BertConfig(vocab_size=64, width=16, num_layers=2, num_heads=2, mlp_dim=32, max_positions=20),
                dropout=0.0,
            ),
            embed_dim=16,
        )
    )
