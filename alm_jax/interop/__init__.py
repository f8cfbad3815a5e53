"""To and from other projects' files: one module a checkpoint family. Needs no PyTorch."""
