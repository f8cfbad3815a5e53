"""Objectives: a model and its losses, chosen by the type of their config."""

from alm_jax.objectives.contrastive import ContrastiveConfig, build_contrastive
from alm_jax.objectives.objective import Objective

ObjectiveConfig = ContrastiveConfig


def build_objective(config: ObjectiveConfig) -> Objective:
    """The objective that ``config``'s type names."""
    return build_contrastive(config)
