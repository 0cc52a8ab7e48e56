"""The failures that are silent elsewhere, each found in what a run's log holds."""
