"""Training methods as short generators over the verbs of `training.model`. No torch."""
