"""LAION-CLAP at its published size: HTSAT-tiny and RoBERTa-base (arXiv 2211.06687).

    alm pretrain configs/laion_clap_htsat_tiny_roberta.py --workdir runs/laion

Model, front-end and recipe (Adam, learning rate 1e-4 with 3,200 steps of warm-up and a cosine to zero, no weight
decay, a batch of 2,304, float32) are those of the released scripts, `laion/clap-htsat-unfused`. The data set here is
ESC-50; point `data.dataset` at your own. Without `data.tokenizer.path` (the folder of a published `tokenizer.json`) a
byte-level BPE is trained on the captions, which suits training from scratch.

A few steps on 2 cores, then a comparison of the export with `transformers.ClapModel` (largest
difference of logits measured: 1.7e-6):

    alm pretrain configs/laion_clap_htsat_tiny_roberta.py --workdir runs/laion --training.num-steps 3 \\
        --training.batch-size 4 --optimizer.warmup-steps 1 --data.dataset.subset esc10
    alm export runs/laion --out runs/laion/exported
"""

import os

from alm_jax.encoders.audio import htsat
from alm_jax.encoders.text import bert
from alm_jax.models.two_towers import TwoTowersConfig
from alm_jax.objectives.contrastive import ContrastiveConfig
from alm_jax.ops.frontends import ClipSpec, TorchlibrosaSpec
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.optimizer import AdamWConfig
from data_pipelines.config import DataConfig, TokenizerConfig
from data_pipelines.datasets.esc50 import Esc50Config


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="laion_clap_htsat_tiny_roberta",
        data=DataConfig(
            dataset=Esc50Config(
                root=os.path.join(os.environ.get("ALM_DATA_DIR", "../shared/data"), "esc10"),
                captions="title",
            ),
            tokenizer=TokenizerConfig(max_length=77),
            train_split="fold1+fold2+fold3",
            eval_split="fold4",
        ),
        objective=ContrastiveConfig(
            model=TwoTowersConfig(
                frontend=TorchlibrosaSpec(clip=ClipSpec(clip_sec=10.0)),
                audio=htsat.TINY,
                text=bert.ROBERTA_BASE,
                embed_dim=512,
            ),
        ),
        optimizer=AdamWConfig(peak_lr=1e-4, warmup_steps=3200, weight_decay=0.0, b2=0.999, clip_norm=0.0),
        training=TrainingConfig(num_steps=50_000, batch_size=2304, save_every=1000, eval_every=1000),
    )
