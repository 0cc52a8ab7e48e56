"""Tests of webapp.evals."""
