"""Benchmarks: losses, encoders, front-ends and whole steps, beside their peers, with and without the device."""
