"""Mask of the windows of a convolution that hold only real frames."""

from jaxtyping import Array, Bool


def window_mask(mask: Bool[Array, "B T"], window: int, stride: int) -> Bool[Array, "B N"]:
    """True where all ``window`` frames from i ``stride`` on are real; N = (T - window) // stride + 1.

    ``mask`` is True for real frames, which come first: padding is at the end of a row.
    """
    num_windows = (mask.shape[1] - window) // stride + 1
    return mask[:, window - 1 :: stride][:, :num_windows]
