"""The centred short-time power spectrogram that librosa, torchlibrosa, torchaudio and transformers share."""

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
    """
    *batch, num_samples = signal.shape
    num_frames = 1 + (num_samples - frame_samples) // hop_samples
    blocks_per_frame = -(-frame_samples // hop_samples)
    num_blocks = num_frames + blocks_per_frame - 1
    missing = max(0, num_blocks * hop_samples - num_samples)
    padded = jnp.pad(signal, [(0, 0)] * len(batch) + [(0, missing)])
    blocks = padded[..., : num_blocks * hop_samples].reshape(*batch, num_blocks, hop_samples)
    shifted = [blocks[..., i : i + num_frames, :] for i in range(blocks_per_frame)]
    return jnp.concatenate(shifted, axis=-1)[..., :frame_samples]


def power_spectrogram(
    waveform: Float[Array, "*B W"], *, n_fft: int, hop_samples: int
) -> Float[Array, "*B T bins"]:
    """Squared magnitude of the STFT: periodic Hann window of n_fft, frames centred by reflection, float32.

    T = 1 + W // hop_samples and bins = n_fft // 2 + 1.

    ``rfft`` of windowed frames is the most accurate of the float32 forms that were measured against
    float64, and the fastest. Largest error in dB after LAION-CLAP's Slaney bank, over 40 ESC-10 recordings
    in 16 bits: rfft 0.022 (``torch.stft`` 0.020), product with the DFT matrix at HIGHEST precision 0.153,
    the same folded about its symmetry 0.043. The error is rounding beside loud bins, so it shows in bins
    near the floor of the logarithm: on unquantised recordings, quieter there, 0.043 (``torch.stft`` 0.034).

    Raises:
      ValueError: if W <= n_fft // 2, where there is too little signal to reflect.
    """
    half = n_fft // 2
    if waveform.shape[-1] <= half:
        raise ValueError(
            f"a waveform of {waveform.shape[-1]} samples cannot be reflected by n_fft // 2 = {half}"
        )
    edges = [(0, 0)] * (waveform.ndim - 1) + [(half, half)]
    centred = jnp.pad(waveform.astype(jnp.float32), edges, mode="reflect")
    frames = frame(centred, frame_samples=n_fft, hop_samples=hop_samples)
    window = jnp.asarray(hann_window(n_fft), jnp.float32).reshape((1,) * (frames.ndim - 1) + (n_fft,))
    spectrum = jnp.fft.rfft(frames * window)
    return jnp.square(spectrum.real) + jnp.square(spectrum.imag)
