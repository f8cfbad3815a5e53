"""The dimension legend and the few aliases that every layer shares. Imports neither JAX nor TensorFlow.

Array annotations are jaxtyping's, ``Float[Array, "B T F"]``, with one meaning a letter in the whole
project; they cost nothing in training and are checked in the tests.

======  ==============================  ======  =======================================
letter  meaning                         letter  meaning
======  ==============================  ======  =======================================
B       pairs in the (global) batch     L       text tokens
W       waveform samples of a clip      S       waveform samples of a source recording
T, F    frames, frequency bins          N       audio tokens after patching
D       model width                     M       MLP width
H, K    heads, size of a head           E       joint embedding size
V       vocabulary                      C       classes, or chunks of one recording
======  ==============================  ======  =======================================

Conventions: a ``mask`` is boolean and True marks real data. ``emb`` is L2-normalised and ``feat`` is
not. ``logit_scale`` is the multiplier in use, ``log_logit_scale`` the parameter. Units are suffixes
(``_hz _sec _samples _frames _db _bytes``). Pair matrices are audio rows by text columns.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

PyTree: TypeAlias = Any
Params: TypeAlias = Mapping[str, Any]
Metrics: TypeAlias = dict[str, Any]
