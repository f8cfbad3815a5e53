"""Pengi at its published size: HTSAT, a mapper of 4 layers, GPT-2 and prompts (arXiv 2305.11834).

    alm pretrain configs/pengi_htsat_gpt2.py --workdir runs/pengi_htsat_gpt2
    alm compile configs/pengi_htsat_gpt2.py --topology v5e:16x16

The audio tower and the mapper train; GPT-2 is frozen. Prompts are those of the paper's table for captions and
classes. As in the released variant without a text encoder, GPT-2 reads the prompt itself, but without a mapper for
the prompt's tokens; the mapper reads the tower's vector (768), not its projection (1024). The paper trains with Adam
for 60 epochs of 3.4 million pairs in batches of 384; the batch here is 512, which 256 chips divide. The folder
`ALM_MODELS_DIR` must hold `ms_clap_2023`, which `alm import` makes from the released CLAP, and `gpt2`, the Hub's
folder. The data set here is ESC-50.

State and batch take 1.02 GiB of a chip's 16.
"""

import os

from alm_jax.encoders.audio import htsat
from alm_jax.encoders.text import gpt2
from alm_jax.models.connectors import MapperConnectorConfig
from alm_jax.models.two_heads import TwoHeadsConfig
from alm_jax.objectives.language_modeling import LanguageModelingConfig
from alm_jax.ops.frontends import ClipSpec, TorchlibrosaSpec
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.initialise import InitFromConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.optimizer import AdamWConfig
from data_pipelines.config import DataConfig, PromptConfig, TokenizerConfig
from data_pipelines.datasets.esc50 import Esc50Config


def get_config() -> ExperimentConfig:
    models = os.environ.get("ALM_MODELS_DIR", "models")
    return ExperimentConfig(
        name="pengi_htsat_gpt2",
        data=DataConfig(
            dataset=Esc50Config(
                root=os.path.join(os.environ.get("ALM_DATA_DIR", "../shared/data"), "esc10"), subset="esc10"
            ),
            tokenizer=TokenizerConfig(path=os.path.join(models, "gpt2"), max_length=77),
            prompt=PromptConfig(template="pengi", question=("caption", "class"), max_length=40),
            train_split="fold1+fold2+fold3",
            eval_split="fold4",
        ),
        objective=LanguageModelingConfig(
            model=TwoHeadsConfig(
                frontend=TorchlibrosaSpec(
                    sample_rate_hz=44100,
                    mel_sample_rate_hz=32000,
                    hop_samples=320,
                    clip=ClipSpec(clip_sec=7.0, pad="repeat"),
                ),
                audio=htsat.TINY,
                connector=MapperConnectorConfig(num_layers=4),
                language_model=gpt2.SMALL,
                compute_dtype="bfloat16",
                remat="block",
            ),
        ),
        init_from=(
            InitFromConfig(source=os.path.join(models, "ms_clap_2023"), into="audio", part="audio"),
            InitFromConfig(source=os.path.join(models, "gpt2"), into="language_model"),
        ),
        # 3.4 million pairs are 6,640 steps an epoch; the warm-up is 5 % of all.
        optimizer=AdamWConfig(
            peak_lr=1e-4, warmup_steps=19_900, b2=0.999, weight_decay=0.0, frozen=("^language_model/",)
        ),
        training=TrainingConfig(num_steps=398_400, batch_size=512, eval_every=6640, save_every=1000),
    )
