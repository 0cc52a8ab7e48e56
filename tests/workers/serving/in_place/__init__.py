"""Whole models in the place of a server's one model."""
