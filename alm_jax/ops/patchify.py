"""Spectrograms cut into square patches, and the inverse."""

from jaxtyping import Array, Float


def patchify(features: Float[Array, "B T F"], patch_size: int) -> Float[Array, "B N pixels"]:
    """Cuts into patches of ``patch_size`` frames by as many bins, without overlap; time-major, bands inside time.

    Pixels of a patch are row-major: frame, then bin (AudioMAE and ViT-MAE, one channel).

    Raises:
      ValueError: unless both T and F are multiples of ``patch_size``.
    """
    batch_size, num_frames, num_bins = features.shape
    if num_frames % patch_size or num_bins % patch_size:
        raise ValueError(
            f"{num_frames} frames of {num_bins} bins; expected multiples of the patch size {patch_size}: pad or crop"
        )
    rows, columns = num_frames // patch_size, num_bins // patch_size
    x = features.reshape(batch_size, rows, patch_size, columns, patch_size)
    return x.transpose(0, 1, 3, 2, 4).reshape(batch_size, rows * columns, patch_size**2)


def unpatchify(patches: Float[Array, "B N pixels"], patch_size: int, num_bins: int) -> Float[Array, "B T F"]:
    """The inverse of `patchify` for spectrograms of ``num_bins`` bins.

    Raises:
      ValueError: unless whole columns of bands of such patches are there.
    """
    batch_size, num_patches, pixels = patches.shape
    columns = num_bins // patch_size
    if num_bins % patch_size or num_patches % columns or pixels != patch_size**2:
        raise ValueError(
            f"{num_patches} patches of {pixels} pixels do not make frames of {num_bins} bins with patches of "
            f"{patch_size} x {patch_size}"
        )
    rows = num_patches // columns
    x = patches.reshape(batch_size, rows, columns, patch_size, patch_size)
    return x.transpose(0, 1, 3, 2, 4).reshape(batch_size, rows * patch_size, num_bins)
