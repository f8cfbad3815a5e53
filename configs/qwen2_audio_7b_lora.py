"""Qwen2-Audio-7B with LoRA: Whisper-large-v3's encoder and a Qwen of 7B (arXiv 2407.10759).

    alm pretrain configs/qwen2_audio_7b_lora.py --workdir runs/qwen2_audio_7b_lora
    alm compile configs/qwen2_audio_7b_lora.py --topology v5e:16x16

Fine-tunes the released model: the projection and adapters of attention train (rank 8, alpha 16); encoder and language
model are frozen. The template is ChatML. The published recipe trains whole models, and its data are not public. The
folder `ALM_MODELS_DIR` must hold `qwen2-audio-7b`, the Hub's folder with its tokenizer. Padding is masked, as in the
released model, so that short recordings make few vectors (25 a second). The data set here is ESC-50.

State and batch take 1.02 GiB of a chip's 16.
"""

import os

from alm_jax.encoders.audio import whisper
from alm_jax.models import qwen2_audio
from alm_jax.models.connectors import LinearConnectorConfig
from alm_jax.models.two_heads import TwoHeadsConfig
from alm_jax.objectives.language_modeling import LanguageModelingConfig
from alm_jax.ops.frontends import ClipSpec, WhisperSpec
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
        name="qwen2_audio_7b_lora",
        data=DataConfig(
            dataset=Esc50Config(
                root=os.path.join(os.environ.get("ALM_DATA_DIR", "../shared/data"), "esc10"), subset="esc10"
            ),
            tokenizer=TokenizerConfig(path=os.path.join(models, "qwen2-audio-7b"), max_length=64),
            prompt=PromptConfig(template="chatml", question="Which sound is it?", max_length=64),
            train_split="fold1+fold2+fold3",
            eval_split="fold4",
        ),
        objective=LanguageModelingConfig(
            model=TwoHeadsConfig(
                frontend=WhisperSpec(num_mels=128, clip=ClipSpec(clip_sec=30.0, pad="zero")),
                audio=whisper.VARIANTS["qwen2_audio"],
                connector=LinearConnectorConfig(),
                language_model=qwen2_audio.BASE.language_model,
                compute_dtype="bfloat16",
                remat="block",
                padding="masked",
            ),
        ),
        init_from=(
            InitFromConfig(
                source=os.path.join(models, "qwen2-audio-7b"), into="language_model", part="language_model"
            ),
            InitFromConfig(source=os.path.join(models, "qwen2-audio-7b"), into="audio", part="encoder"),
            InitFromConfig(
                source=os.path.join(models, "qwen2-audio-7b"), into="connector/linear", part="projector"
            ),
        ),
        lora=LoraConfig(targets=(r"^language_model/blocks/attention/.*/kernel$",), rank=8, alpha=16.0),
        optimizer=AdamWConfig(
            peak_lr=1e-4, warmup_steps=100, weight_decay=0.0, frozen=("^audio/", "^language_model/")
        ),
        training=TrainingConfig(
            num_steps=10_000,
            batch_size=256,
            mesh=MeshConfig(data=8, fsdp=32),
            eval_every=500,
            save_every=500,
        ),
    )
