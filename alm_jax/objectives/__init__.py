"""Objectives, one a file: a model and its losses, as the config of a run names them."""

from alm_jax.objectives.objective import Objective, ObjectiveConfig

__all__ = ["Objective", "ObjectiveConfig", "build_objective"]


def build_objective(config: ObjectiveConfig) -> Objective:
    """The objective of a config."""
    return config.build()
