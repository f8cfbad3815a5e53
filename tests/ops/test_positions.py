"""The sine-cosine grid against its formula and transformers."""

import numpy as np
import pytest
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from alm_jax.ops.positions import sincos_grid


def test_every_cell_equals_the_formula():
    rows, columns, width = 5, 3, 8
    got = sincos_grid(rows, columns, width)
    frequency = 10000.0 ** -np.array([0.0, 0.5])
    for row in range(rows):
        for column in range(columns):
            want = [*np.sin(column * frequency), *np.cos(column * frequency)]
            want += [*np.sin(row * frequency), *np.cos(row * frequency)]
            np.testing.assert_allclose(got[row * columns + column], want, atol=1e-6)


def test_the_grid_equals_that_of_transformers():
    want = build_2d_sinusoidal_position_embedding(64, 8, 768).numpy()
    # transformers puts the row first, and swaps the halves where it initialises ViT-MAE.
    want = np.concatenate([want[:, 384:], want[:, :384]], axis=1)
    got = sincos_grid(64, 8, 768)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_a_width_that_has_no_quarters_is_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_grid(2, 2, 6)
