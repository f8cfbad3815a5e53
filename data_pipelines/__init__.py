"""Data pipelines: from raw recordings and captions to batches of ``alm_jax.batch``.

``prepare`` builds a TFDS data set of int16 PCM (ArrayRecord) once; ``pipeline`` reads it through ``tf.data`` in an
order that is a pure function of (seed, step). This package imports only ``batch``, ``types`` and ``errors`` of
``alm_jax``, and never JAX. TensorFlow is loaded when data is first built or read, so ``decode``, ``text`` and
``config`` work without it.
"""
