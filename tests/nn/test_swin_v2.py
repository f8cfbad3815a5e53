"""Pieces of the local decoder's blocks; the blocks themselves against PyTorch: tests/interop/test_parity.py."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.nn.parameter import truncated_normal
from alm_jax.nn.swin_v2 import SwinV2Block, log_distances, shift_in_time_mask


def test_distances_are_logarithms_with_a_sign():
    found = log_distances((2, 3)).reshape(6, 6, 2)
    # From token (0, 0) to token (1, 2) of the window, and back.
    np.testing.assert_allclose(found[0, 5], [-math.log(2), -math.log(3)], rtol=1e-15)
    np.testing.assert_allclose(found[5, 0], [math.log(2), math.log(3)], rtol=1e-15)
    assert not found[range(6), range(6)].any()


def test_only_the_windows_over_the_end_of_time_are_cut_in_two():
    mask = shift_in_time_mask((8, 4), (4, 2), 2)
    assert mask.shape == (4, 8, 8)
    assert mask[:2].all()
    # Rows 6 and 7 of the rolled map are the first two of the clip.
    halves = np.repeat([False, False, True, True], 2)
    np.testing.assert_array_equal(mask[2], halves[:, None] == halves[None, :])
    np.testing.assert_array_equal(mask[3], mask[2])


def test_a_patch_is_heard_in_its_window_alone():
    """Gradients of one patch's state: nothing from the other windows, nor across the end of time when shifted."""

    def touched(shifted: bool) -> np.ndarray:
        block = SwinV2Block(2, 4, shifted, 16, 8, 0.0, 1e-6, jnp.dtype("float32"), truncated_normal)
        x = jax.random.normal(jax.random.key(1), (1, 8, 4, 8))
        variables = jax.jit(block.init)(jax.random.key(0), x)
        # Of the whole state at (0, 0); weighted, since the norms make its plain sum constant.
        weights = jax.random.normal(jax.random.key(2), (8,))
        grad = jax.jit(jax.grad(lambda x: jnp.vdot(block.apply(variables, x)[0, 0, 0], weights)))(x)
        return np.abs(np.asarray(grad[0])).max(axis=-1).any(axis=1)

    np.testing.assert_array_equal(np.flatnonzero(touched(False)), [0, 1, 2, 3])
    np.testing.assert_array_equal(np.flatnonzero(touched(True)), [0, 1])
