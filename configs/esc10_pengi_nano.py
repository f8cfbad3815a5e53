"""Pengi for a laptop: ESC-10, folds 1-3; asked what sound it is, the model writes the class's name.

    alm pretrain configs/esc10_pengi_nano.py --workdir runs/esc10_pengi --seed 0

A small version of `pengi_htsat_gpt2.py` in which all parameters train, from scratch. Class names written correctly on
the 80 clips of fold 4, in per cent (chance 10), seed 0: 43.8, 52.5, 63.8 and 71.2 after 200, 400, 600 and 800 steps;
validation loss 0.604, 0.479, 0.391 and 0.338.
"""

import dataclasses
import os

from alm_jax.encoders.audio import htsat
from alm_jax.encoders.text.gpt2 import Gpt2Config
from alm_jax.models.connectors import MapperConnectorConfig
from alm_jax.models.two_heads import TwoHeadsConfig
from alm_jax.objectives.language_modeling import LanguageModelingConfig
from alm_jax.objectives.recordings import WaveformAugmentConfig
from alm_jax.ops.frontends import ClapSpec, ClipSpec
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.optimizer import AdamWConfig
from data_pipelines.config import DataConfig, PromptConfig, TokenizerConfig
from data_pipelines.datasets.esc50 import Esc50Config


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="esc10_pengi_nano",
        data=DataConfig(
            dataset=Esc50Config(
                root=os.path.join(os.environ.get("ALM_DATA_DIR", "../shared/data"), "esc10"),
                subset="esc10",
                templates=("{}",),
            ),
            tokenizer=TokenizerConfig(max_length=8),
            # "this is a sound of", Pengi's words for it.
            prompt=PromptConfig(template="pengi", question="class", max_length=8),
            train_split="fold1+fold2+fold3",
            eval_split="fold4",
        ),
        objective=LanguageModelingConfig(
            model=TwoHeadsConfig(
                frontend=ClapSpec(
                    sample_rate_hz=16000,
                    n_fft=1024,
                    hop_samples=640,
                    num_mels=32,
                    fmax_hz=8000.0,
                    clip=ClipSpec(clip_sec=5.0),
                ),
                # The tower of esc10_two_towers_nano.py.
                audio=dataclasses.replace(
                    htsat.NANO,
                    spec_size=64,
                    num_mels=32,
                    embed_dim=48,
                    depths=(2, 2, 2),
                    num_heads=(3, 6, 12),
                    drop_path_rate=0.1,
                    spec_augment_time_width=24,
                    spec_augment_freq_width=6,
                    kernel_init="normal",
                ),
                connector=MapperConnectorConfig(
                    num_vectors=8, num_inputs=8, num_layers=2, num_heads=4, mlp_dim=192
                ),
                language_model=Gpt2Config(
                    vocab_size=400,
                    width=96,
                    num_layers=2,
                    num_heads=4,
                    mlp_dim=384,
                    max_positions=32,
                    kernel_init="fan_in",
                ),
            ),
            augment=WaveformAugmentConfig(gain_db=6.0, roll=True),
        ),
        optimizer=AdamWConfig(peak_lr=1e-3, warmup_steps=100, weight_decay=0.2),
        training=TrainingConfig(num_steps=800, batch_size=32, ema_decay=0.99, eval_every=200, save_every=400),
    )
