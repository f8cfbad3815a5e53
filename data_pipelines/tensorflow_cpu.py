"""TensorFlow as used by this project: for ``tf.data``, on the CPU, without log messages, beside JAX in one
process."""

import functools
import os
from typing import Any


@functools.cache
def load_tensorflow() -> Any:
    """Imports TensorFlow at the first call and hides every accelerator from it, since JAX uses them."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # nothing is computed here, and TensorFlow prints a greeting to stderr
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    return tf
