"""Whole models behind free functions: above this layer nobody sees a Flax module."""
