"""CLAP on your own recordings: a table, a folder, or webdataset tars with captions or classes.

    alm data check my.csv                                               (lists what is read, and all problems)
    alm pretrain configs/clap.py --data.dataset.path my.csv --workdir runs/mine

No Python needs to be written: the usual columns and layouts are found (docs/own_data.md). The towers are small, 4.2 M
parameters, so that a laptop can train them. For a larger data set use larger towers
(configs/laion_clap_htsat_tiny_roberta.py has LAION-CLAP's) and more of `--training.num-steps`,
`--training.batch-size` and `--data.tokenizer.vocab-size`.
"""

import dataclasses

from alm_jax.encoders.audio import htsat
from alm_jax.encoders.text import bert
from alm_jax.models.two_towers import TwoTowersConfig
from alm_jax.objectives.contrastive import ContrastiveConfig
from alm_jax.ops.frontends import ClapSpec, ClipSpec
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.optimizer import AdamWConfig
from data_pipelines.config import DataConfig, TokenizerConfig
from data_pipelines.datasets.recordings import RecordingsConfig


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="clap",
        data=DataConfig(
            dataset=RecordingsConfig(path="recordings.csv"),
            tokenizer=TokenizerConfig(max_length=48),
        ),
        objective=ContrastiveConfig(
            model=TwoTowersConfig(
                frontend=ClapSpec(
                    sample_rate_hz=16000,
                    n_fft=1024,
                    hop_samples=640,
                    num_mels=64,
                    fmax_hz=8000.0,
                    clip=ClipSpec(clip_sec=10.0),
                ),
                audio=dataclasses.replace(htsat.NANO, embed_dim=48, num_heads=(2, 4, 8, 16)),
                text=dataclasses.replace(bert.NANO, vocab_size=4000),
                embed_dim=128,
            ),
        ),
        optimizer=AdamWConfig(peak_lr=1e-3, warmup_steps=100),
        training=TrainingConfig(num_steps=1000, batch_size=32, eval_every=250, save_every=250),
    )
