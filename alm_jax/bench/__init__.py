"""Benchmarks of losses, encoders, front-ends and whole steps, with peers, on real devices or compiled for absent
ones."""
