"""Serving: deployments, hot-loads with their proof, sampling sessions and calls."""
