"""A run as a thing: its config, its folder, its training, and the one way to load a model."""
