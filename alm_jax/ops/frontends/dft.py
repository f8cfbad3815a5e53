"""Spectra of frames, in two forms: the FFT on CPU, and two matrix products on accelerators.

The FFT costs O(n log n), but in lanes that matrix units leave idle, on TPU in passes through memory, and XLA
does not divide it over devices (`by_platform`). The other form splits the discrete Fourier transform of n_fft
samples once by the parity of its bins,

    X[2k]     = sum_{m < n_fft/2} (x[m] + x[m + n_fft/2]) exp(-2 pi i m 2k / n_fft)
    X[2k + 1] = sum_{m < n_fft/2} (x[m] - x[m + n_fft/2]) exp(-2 pi i m (2k + 1) / n_fft)

(the first step of the radix-2 FFT, decimation in frequency), each sum a product with a real matrix that has
the cosines and the sines side by side. That is half the operations of the plain matrix, needs no reversal
of the frame, which a fold about its symmetry would, and leaves smaller rounding errors.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from alm_jax.ops.frontends.mel import project_to_mel


def by_platform(
    fft: Callable[[Array], Array], products: Callable[[Array], Array], frames: Float[Array, "*B T n"]
) -> Array:
    """``fft`` of the frames on CPU and ``products`` elsewhere: the one place that chooses the form.

    On several devices the FFT has a cost of its own: XLA does not divide it. A batch that is split over the
    devices is gathered, and every device transforms all of it; products are divided like the batch, with no
    communication.

    For TPU, chosen for a clip of 10 s at 48 kHz (1001 frames of 1024) and 64 bands, batch 8, from what the
    compiler says of each form on a v5e (libtpu 0.0.52, summed ``estimated_cycles``, an estimate and no timing;
    ``pytest -m slow -s tests/ops/test_frontends_dft.py`` prints the first and the taken one):

    | form | cycles a clip | operations | bytes accessed | temporary memory |
    | FFT | 133e3 | 0.93e9 | 177e6 | 62.6 MiB |
    | product with the plain matrix | 132e3 | 2.17e9 | 52e6 | none |
    | the same, folded about the window's symmetry | 111e3 | 1.12e9 | 59e6 | none |
    | split by parity (taken) | 92e3 | 1.12e9 | 64e6 | none |
    | split twice | 90e3 | 0.86e9 | 70e6 | none |

    Largest error after LAION-CLAP's bank against float64, over ten ESC-10 recordings in 16 bits: FFT 0.022 dB,
    split by parity 0.054 (over forty recordings ``torch.stft`` 0.020, plain matrix 0.153). It is rounding
    beside loud bins, so it shows in bins near the floor of the logarithm.

    At full float32 precision the matrix units take six passes: 6 x 1.12e9 operations are 51e3 cycles of a v5e
    (197e12 bfloat16 operations a second at 1.5 GHz), the floor of the split form. On CPU the FFT is the more
    accurate and the faster one: 3.7 ms of CPU time a clip against 13.5, least of seven taken in turns.

    For GPU, chosen from floors, untimed: one H100 could do the FFT in 2.5 us a clip (8.2 MB of frames read and
    spectra written at 3.35 TB/s), and the products in 17 us (1.12e9 float32 operations outside the tensor
    cores at 67e12 a second), a small part of any tower's step; but n cards that gather the batch take n times
    2.5 us, and receive 4.1 MB a clip of the whole batch besides.
    """
    # Compiled apart, so that the matrices of the form that is not taken stay out of the program.
    return lax.platform_dependent(frames, cpu=jax.jit(fft), default=jax.jit(products))


@functools.lru_cache(maxsize=16)
def _split_matrices(num_samples: int, n_fft: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [m, 2 bins] for even and for odd bins: cosines, then negative sines, of m samples."""
    matrices = []
    for bins in (np.arange(0, n_fft // 2 + 1, 2), np.arange(1, n_fft // 2 + 1, 2)):
        # Reduced modulo n_fft in whole numbers, so that the angle is exact however long the transform.
        angle = 2.0 * np.pi * ((np.arange(num_samples)[:, None] * bins[None, :]) % n_fft) / n_fft
        matrix = np.concatenate([np.cos(angle), -np.sin(angle)], axis=1).astype(np.float32)
        matrix.setflags(write=False)  # the cache hands the same array to every caller
        matrices.append(matrix)
    return matrices[0], matrices[1]


def split_dft(frames: Float[Array, "*B T n"], n_fft: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """(real, imaginary) parts of the even bins, and of the odd bins, by two matrix products in float32.

    Frames shorter than n_fft count as continued by zeros.
    """
    half = n_fft // 2
    num_samples = frames.shape[-1]
    if num_samples <= half:
        total = difference = frames
    else:
        edges = [(0, 0)] * (frames.ndim - 1) + [(0, n_fft - num_samples)]
        frames = jnp.pad(frames, edges)
        total, difference = frames[..., :half] + frames[..., half:], frames[..., :half] - frames[..., half:]
    even, odd = (
        jnp.matmul(part, matrix, precision=lax.Precision.HIGHEST)
        for part, matrix in zip(
            (total, difference), _split_matrices(min(num_samples, half), n_fft), strict=True
        )
    )
    even_real, even_imag = jnp.split(even, 2, axis=-1)
    odd_real, odd_imag = jnp.split(odd, 2, axis=-1)
    return (even_real, even_imag), (odd_real, odd_imag)


def _energy(real: Array, imag: Array, *, magnitude: bool) -> Array:
    power = jnp.square(real) + jnp.square(imag)
    # The floor, far below any mel band's, keeps the root's gradient finite in silence.
    return jnp.sqrt(jnp.maximum(power, 1e-30)) if magnitude else power


def mel_energies_by_fft(
    frames: Float[Array, "*B T n"], bank: Float[np.ndarray, "F bins"], *, magnitude: bool = False
) -> Float[Array, "*B T F"]:
    """`mel_energies` by the FFT."""
    spectrum = jnp.fft.rfft(frames, n=2 * (bank.shape[1] - 1))
    return project_to_mel(_energy(spectrum.real, spectrum.imag, magnitude=magnitude), bank)


def mel_energies_by_products(
    frames: Float[Array, "*B T n"], bank: Float[np.ndarray, "F bins"], *, magnitude: bool = False
) -> Float[Array, "*B T F"]:
    """`mel_energies` by matrix products: the bank is split by parity as the bins are, so none moves."""
    (even, odd) = split_dft(frames, 2 * (bank.shape[1] - 1))
    return project_to_mel(_energy(*even, magnitude=magnitude), bank[:, 0::2]) + project_to_mel(
        _energy(*odd, magnitude=magnitude), bank[:, 1::2]
    )


def mel_energies(
    frames: Float[Array, "*B T n"], bank: Float[np.ndarray, "F bins"], *, magnitude: bool = False
) -> Float[Array, "*B T F"]:
    """Power (or, if ``magnitude``, its root) of windowed frames, summed into mel bands, in float32.

    The length of the transform is the bank's, 2 (bins - 1); shorter frames count as continued by zeros. The
    form is `by_platform`'s.
    """
    return by_platform(
        functools.partial(mel_energies_by_fft, bank=bank, magnitude=magnitude),
        functools.partial(mel_energies_by_products, bank=bank, magnitude=magnitude),
        frames,
    )


def spectrum_by_fft(frames: Float[Array, "*B T n"], n_fft: int) -> Float[Array, "*B T bins 2"]:
    """`spectrum` by the FFT."""
    value = jnp.fft.rfft(frames, n=n_fft)
    return jnp.stack([value.real, value.imag], axis=-1)


def spectrum_by_products(frames: Float[Array, "*B T n"], n_fft: int) -> Float[Array, "*B T bins 2"]:
    """`spectrum` by matrix products."""
    (even, odd) = split_dft(frames, n_fft)
    even_pair, odd_pair = jnp.stack(even, axis=-1), jnp.stack(odd, axis=-1)
    missing = even_pair.shape[-2] - odd_pair.shape[-2]
    odd_pair = jnp.pad(odd_pair, [(0, 0)] * (odd_pair.ndim - 2) + [(0, missing), (0, 0)])
    woven = jnp.stack([even_pair, odd_pair], axis=-2)  # [... bins/2, parity, 2]
    return woven.reshape(*woven.shape[:-3], -1, 2)[..., : n_fft // 2 + 1, :]


def spectrum(frames: Float[Array, "*B T n"], n_fft: int) -> Float[Array, "*B T bins 2"]:
    """Real and imaginary part of the Fourier transform of windowed frames, bins = n_fft // 2 + 1, float32."""
    return by_platform(
        functools.partial(spectrum_by_fft, n_fft=n_fft),
        functools.partial(spectrum_by_products, n_fft=n_fft),
        frames,
    )
