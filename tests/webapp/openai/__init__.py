"""Inference in two dialects, over a real sampler."""
