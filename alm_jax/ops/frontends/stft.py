"""Waveforms cut into frames, and the windows that frames are multiplied by."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def hann_window(num_samples: int) -> Float[np.ndarray, " n"]:
    """Periodic Hann window, 0.5 - 0.5 cos(2 pi n / N), float64."""
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(num_samples) / num_samples)


def frame(signal: Float[Array, "*B W"], *, frame_samples: int, hop_samples: int) -> Float[Array, "*B T n"]:
    """Overlapping frames, T = 1 + (W - frame_samples) // hop_samples; what is left at the end is dropped.

    Hop-sized blocks are laid side by side, shifted: slices and one concatenation, where indexing frame by
    frame would be a gather, which accelerators run slowly.

    Raises:
      ValueError: if W < frame_samples, where there is no frame.
    """
    *batch, num_samples = signal.shape
    if num_samples < frame_samples:
        raise ValueError(f"a waveform of {num_samples} samples has no frame of {frame_samples}")
    num_frames = 1 + (num_samples - frame_samples) // hop_samples
    blocks_per_frame = -(-frame_samples // hop_samples)
    num_blocks = num_frames + blocks_per_frame - 1
    missing = max(0, num_blocks * hop_samples - num_samples)
    padded = jnp.pad(signal, [(0, 0)] * len(batch) + [(0, missing)])
    blocks = padded[..., : num_blocks * hop_samples].reshape(*batch, num_blocks, hop_samples)
    shifted = [blocks[..., i : i + num_frames, :] for i in range(blocks_per_frame)]
    return jnp.concatenate(shifted, axis=-1)[..., :frame_samples]


def windowed(frames: Float[Array, "*B T n"], window: Float[np.ndarray, " n"]) -> Float[Array, "*B T n"]:
    """Frames times a window, float32."""
    return frames * jnp.asarray(window, jnp.float32).reshape((1,) * (frames.ndim - 1) + (-1,))


def reflected_frames(
    waveform: Float[Array, "*B W"],
    *,
    frame_samples: int,
    hop_samples: int,
    edge_samples: int | None = None,
) -> Float[Array, "*B T n"]:
    """Frames under a periodic Hann window, float32, of a waveform that is reflected at both ends.

    By default it is continued by frame_samples // 2 samples, so that frame t is centred on sample t
    hop_samples and T = 1 + W // hop_samples, as in librosa, torchlibrosa, torchaudio and transformers.

    A window shorter than the Fourier transform needs no zeros before it: they turn the spectrum's phase and
    leave its magnitude.

    Raises:
      ValueError: if W <= edge_samples, where there is too little signal to reflect.
    """
    edge = frame_samples // 2 if edge_samples is None else edge_samples
    if waveform.shape[-1] <= edge:
        raise ValueError(
            f"a waveform of {waveform.shape[-1]} samples cannot be reflected by {edge} at its ends"
        )
    edges = [(0, 0)] * (waveform.ndim - 1) + [(edge, edge)]
    continued = jnp.pad(waveform.astype(jnp.float32), edges, mode="reflect")
    frames = frame(continued, frame_samples=frame_samples, hop_samples=hop_samples)
    return windowed(frames, hann_window(frame_samples))
