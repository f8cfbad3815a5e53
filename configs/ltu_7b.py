"""LTU-7B, its last stage: CAV-MAE's audio branch and LLaMA-7B with LoRA (arXiv 2305.10790).

    alm pretrain configs/ltu_7b.py --workdir runs/ltu_7b
    alm compile configs/ltu_7b.py --topology v5e:16x16

Each clip becomes 32 vectors before the text. Audio branch, projection and adapters train (queries and values, rank 8,
alpha 16, dropout 0.05); the rest is frozen. The loss is on prompt and answer, the template alpaca's, with a batch of
256, learning rate 1e-4, 100 steps of warm-up, and bfloat16. One epoch of OpenAQA's 5.6 million examples is 21,900
steps. The folder `ALM_MODELS_DIR` must hold `ltu_audio`, which `alm import` makes from the released audio branch, and
`vicuna-7b`, the Hub's folder with a tokenizer.json that pads (with id 0, as published). The data set here is ESC-50.

State and batch take 0.83 GiB of a chip's 16. With 2,048 rows the compiler states a peak of 2.24 GiB for a step.
"""

import os

from alm_jax.encoders.audio import cav_mae
from alm_jax.encoders.text import llama
from alm_jax.models.connectors import DirectConnectorConfig
from alm_jax.models.two_heads import TwoHeadsConfig
from alm_jax.objectives.language_modeling import LanguageModelingConfig
from alm_jax.ops.frontends import AstSpec, ClipSpec
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.initialise import InitFromConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.lora import LoraConfig
from alm_jax.training.mesh import MeshConfig
from alm_jax.training.optimizer import AdamWConfig
from data_pipelines.config import DataConfig, PromptConfig, TokenizerConfig
from data_pipelines.datasets.esc50 import Esc50Config


def get_config() -> ExperimentConfig:
    models = os.environ.get("ALM_MODELS_DIR", "models")
    return ExperimentConfig(
        name="ltu_7b",
        data=DataConfig(
            dataset=Esc50Config(
                root=os.path.join(os.environ.get("ALM_DATA_DIR", "../shared/data"), "esc10"), subset="esc10"
            ),
            tokenizer=TokenizerConfig(path=os.path.join(models, "vicuna-7b"), max_length=48),
            prompt=PromptConfig(
                template="alpaca", question="Classify the sound events in the audio clip.", max_length=60
            ),
            train_split="fold1+fold2+fold3",
            eval_split="fold4",
        ),
        objective=LanguageModelingConfig(
            model=TwoHeadsConfig(
                frontend=AstSpec(clip=ClipSpec(clip_sec=10.0), mean=-5.081, std=4.4849, num_std=1.0),
                audio=cav_mae.LTU,
                connector=DirectConnectorConfig(),
                language_model=llama.LLAMA_7B,
                compute_dtype="bfloat16",
                remat="block",
            ),
            loss_on="all",
        ),
        init_from=(
            InitFromConfig(source=os.path.join(models, "ltu_audio"), into="audio"),
            InitFromConfig(source=os.path.join(models, "vicuna-7b"), into="language_model"),
        ),
        lora=LoraConfig(
            targets=(r"^language_model/blocks/attention/(query|value)/kernel$",),
            rank=8,
            alpha=16.0,
            dropout=0.05,
        ),
        optimizer=AdamWConfig(
            peak_lr=1e-4, warmup_steps=100, b2=0.999, weight_decay=0.0, frozen=("^language_model/",)
        ),
        training=TrainingConfig(
            num_steps=21_900,
            batch_size=256,
            mesh=MeshConfig(data=8, fsdp=32),
            eval_every=1000,
            save_every=1000,
        ),
    )
