"""The device side of a run: one resident base model, many adapters, exact numbers."""
