"""Windows without padding, counted by hand."""

import jax.numpy as jnp
import numpy as np

from alm_jax.ops.window_mask import window_mask


def test_a_window_is_real_where_all_its_frames_are():
    real = np.arange(11) < np.asarray([[11], [7], [6], [0]])
    expected = [[all(row[i : i + 4]) for i in range(0, 11 - 4 + 1, 3)] for row in real]
    np.testing.assert_array_equal(window_mask(jnp.asarray(real), 4, 3), expected)
    assert np.sum(expected, axis=1).tolist() == [3, 2, 1, 0]
