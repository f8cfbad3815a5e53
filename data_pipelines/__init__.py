"""Data pipelines: raw recordings and captions in, batches of ``alm_jax.batch`` out.

``prepare`` builds a TFDS data set of int16 PCM (ArrayRecord) once; ``pipeline`` reads it through
``tf.data`` in an order that is a pure function of (seed, step). Of ``alm_jax`` this package imports
only ``batch``, ``types`` and ``errors``, never JAX; TensorFlow is loaded when data is first built or
read, so ``decode``, ``text`` and ``config`` are usable without it.
"""
