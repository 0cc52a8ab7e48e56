"""Rows to examples, to tokens and weights, to batches. No torch."""
