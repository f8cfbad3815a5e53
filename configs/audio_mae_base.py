"""AudioMAE at its published size: ViT-B, decoder with local windows, 80 % of patches hidden (arXiv 2207.06405).

    alm pretrain configs/audio_mae_base.py --workdir runs/audio_mae_base
    alm compile configs/audio_mae_base.py --topology v5e:16x16

Front-end, model and recipe (AdamW with b2 0.95, learning rate 2e-4 x 512 / 256, 3 of 33 epochs of warm-up and a half
cosine, weight decay 1e-4, a batch of 512) are those of the released scripts for AudioSet's 2 million clips, so one
epoch is 3,900 steps. The data set here is ESC-50; point `data.dataset` at your own.

State and batch take 1.02 GiB of a chip's 16.
"""

import os

from alm_jax.models.masked_autoencoder import MaskedAutoencoderConfig
from alm_jax.objectives.masked_spectrogram import MaskedSpectrogramConfig
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.optimizer import AdamWConfig
from data_pipelines.config import DataConfig, TokenizerConfig
from data_pipelines.datasets.esc50 import Esc50Config


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="audio_mae_base",
        data=DataConfig(
            dataset=Esc50Config(
                root=os.path.join(os.environ.get("ALM_DATA_DIR", "../shared/data"), "esc10"), subset="esc10"
            ),
            # The batches have captions, which are not used.
            tokenizer=TokenizerConfig(vocab_size=300, max_length=8),
            train_split="fold1+fold2+fold3",
            eval_split="fold4",
        ),
        objective=MaskedSpectrogramConfig(
            model=MaskedAutoencoderConfig(compute_dtype="bfloat16", remat="block"),
        ),
        optimizer=AdamWConfig(peak_lr=4e-4, warmup_steps=11_700, weight_decay=1e-4, b2=0.95, clip_norm=0.0),
        training=TrainingConfig(num_steps=128_700, batch_size=512, save_every=1000, eval_every=3900),
    )
