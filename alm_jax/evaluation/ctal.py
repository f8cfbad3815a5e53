"""What CTAL's encoders draw: `SpeechEncoder` of its objective, by its old name."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.models.capabilities import Reconstruction, TextTokens
from alm_jax.objectives.ctal import CtalConfig, SpeechEncoder


def draw(config: CtalConfig, variables: dict[str, Any], batch: Mapping[str, np.ndarray]) -> Reconstruction:
    """`SpeechEncoder.reconstruct` on the host."""
    model = SpeechEncoder(config, TextTokens((), (), 0))
    return jax.tree.map(np.asarray, model.reconstruct(variables, jax.tree.map(jnp.asarray, dict(batch))))
