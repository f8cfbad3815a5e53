"""What one head embeds and draws: `OneHead` of its objective, by its old names."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.models.capabilities import Reconstruction
from alm_jax.objectives.calm import CalmConfig, OneHead


def draw(config: CalmConfig, variables: dict[str, Any], batch: Mapping[str, np.ndarray]) -> Reconstruction:
    """`OneHead.reconstruct` on the host."""
    placed = jax.tree.map(jnp.asarray, dict(batch))
    return jax.tree.map(np.asarray, OneHead(config).reconstruct(variables, placed))
