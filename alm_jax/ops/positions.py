"""Fixed positional encodings, as constants."""

import numpy as np
from jaxtyping import Float


def sincos_grid(rows: int, columns: int, width: int) -> Float[np.ndarray, "N width"]:
    """Sine-cosine encoding of the ``rows`` x ``columns`` cells of a grid, row-major; float32, N = rows * columns.

    [sin(c w), cos(c w), sin(r w), cos(r w)] for the cell in row r and column c, at the frequencies
    w_k = 10000^(-k / K), k = 0..K-1, K = width / 4: that of MAE (He et al. 2022, arXiv 2111.06377), whose released
    code puts the column first.

    Raises:
      ValueError: unless ``width`` is a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"width {width} is not a multiple of 4")
    frequency = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    row, column = (axis.reshape(-1, 1) * frequency for axis in np.indices((rows, columns)))
    encoding = [np.sin(column), np.cos(column), np.sin(row), np.cos(row)]
    return np.concatenate(encoding, axis=1).astype(np.float32)
