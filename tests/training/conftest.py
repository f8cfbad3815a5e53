"""The small two-tower model, for these tests by name."""

from tiny_towers import objective_config as objective_config
