"""TensorFlow as this project uses it: for ``tf.data``, on the CPU, quietly, beside JAX in one process."""

import functools
import os
from typing import Any


@functools.cache
def load_tensorflow() -> Any:
    """Imports TensorFlow at the first call, and hides every accelerator from it, which JAX owns."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # nothing is computed here, and it greets on stderr
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    return tf
