"""Runs and their operation logs, metrics, samples and log lines."""
