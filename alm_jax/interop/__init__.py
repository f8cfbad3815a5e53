"""Conversion from and to other projects' files: one module a checkpoint family. Needs no PyTorch."""
