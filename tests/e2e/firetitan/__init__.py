"""The unmodified Fireworks training SDK against a live installation."""
