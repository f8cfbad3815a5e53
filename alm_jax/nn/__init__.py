"""Layers with named axes, from which the encoders are built."""
