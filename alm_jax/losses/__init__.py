"""Losses as free functions of arrays. Each returns (sum, weight), both float32; the caller divides last."""
