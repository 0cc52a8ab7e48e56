"""Suites, evaluations, results and their comparison."""
