"""A BEATs and its front-end for the tests of training: 8 x 4 patches of a clip, no noise but the masks."""

from alm_jax.encoders.audio.beats import BeatsConfig
from alm_jax.ops.frontends import BeatsSpec, ClipSpec

FRONTEND = BeatsSpec(
    sample_rate_hz=8000,
    n_fft=256,
    window_samples=200,
    hop_samples=100,
    num_mels=16,
    fmax_hz=4000.0,
    clip=ClipSpec(clip_sec=0.43, train_crop="centre"),
)
ENCODER = BeatsConfig(
    num_mels=16,
    patch_size=4,
    patch_width=8,
    width=16,
    num_layers=1,
    num_heads=2,
    mlp_dim=32,
    position_window=4,
    position_groups=2,
    num_buckets=8,
    max_distance=16,
)
