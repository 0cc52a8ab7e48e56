"""Saved weights: register, keep, expire, download, lineage."""
