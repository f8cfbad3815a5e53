"""Four objectives over one trunk, for a laptop: contrast, captioning, matching and reconstruction on composed sounds.

    pip install 'alm_jax[data,eval]'
    alm pretrain configs/synthetic_multi_task_nano.py --workdir runs/synthetic_multi_task --seed 0
    alm evaluate runs/synthetic_multi_task

On 200 compositions that do not occur in training, seed 0, after 150, 300, 450 and 600 steps:

    validation loss, the weighted sum          5.38   2.62   2.14   2.06
    R@1 from text to audio, % (chance 0.5)     30.8   75.9   82.7   86.4
    R@1 from audio to text, %                  33.5   78.5   85.0   87.5
    captions that name the sounds, % (all of   0.5    32.5   58.0   61.0
      them, with register and level)
    pairs judged right, % (always no: 66.7)    66.7   76.5   87.2   86.3
    reconstruction, mean square                0.178  0.143  0.128  0.126
"""

from alm_jax.encoders.audio.audio_mae import AudioMaeConfig
from alm_jax.models.caption_decoder import CaptionDecoderConfig
from alm_jax.models.contrastive_captioner import ContrastiveCaptionerConfig
from alm_jax.models.patch_decoders import GlobalDecoderConfig
from alm_jax.objectives.multi_task import (
    CaptioningTerm,
    ContrastiveTerm,
    MatchingTerm,
    MultiTaskConfig,
    ReconstructionTerm,
)
from alm_jax.objectives.patch_masks import UnstructuredMaskConfig
from alm_jax.ops.frontends import AstSpec, ClipSpec
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.training.loop import TrainingConfig
from alm_jax.training.optimizer import AdamWConfig
from data_pipelines.config import DataConfig, TokenizerConfig
from data_pipelines.datasets.synthetic_captions import SyntheticCaptionsConfig


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="synthetic_multi_task_nano",
        data=DataConfig(
            dataset=SyntheticCaptionsConfig(clip_sec=2.0),
            tokenizer=TokenizerConfig(max_length=24),
        ),
        objective=MultiTaskConfig(
            model=ContrastiveCaptionerConfig(
                # 16 ms frames and 64 bands: 8 x 4 patches of 256 ms.
                frontend=AstSpec(
                    n_fft=1024,
                    window_samples=512,
                    hop_samples=256,
                    num_mels=64,
                    padded_frames=128,
                    mean=-8.136,
                    std=3.808,
                    clip=ClipSpec(clip_sec=2.0, train_crop="centre"),
                ),
                audio=AudioMaeConfig(
                    num_frames=128, num_mels=64, width=128, num_layers=4, num_heads=4, mlp_dim=512
                ),
                text=CaptionDecoderConfig(
                    vocab_size=600,
                    width=128,
                    num_unimodal_layers=2,
                    num_multimodal_layers=2,
                    num_heads=4,
                    mlp_dim=512,
                    max_positions=25,
                    kernel_init="fan_in",
                ),
                caption_queries=16,
                embed_dim=128,
                matching_head=True,
                patch_decoder=GlobalDecoderConfig(width=64, num_layers=2, num_heads=4, mlp_dim=256),
            ),
            terms=(
                ContrastiveTerm(),
                CaptioningTerm(),
                MatchingTerm(),
                ReconstructionTerm(mask=UnstructuredMaskConfig(ratio=0.75), normalize_target=False),
            ),
        ),
        optimizer=AdamWConfig(peak_lr=1e-3, warmup_steps=50),
        training=TrainingConfig(num_steps=600, batch_size=64, eval_every=150, save_every=300),
    )
