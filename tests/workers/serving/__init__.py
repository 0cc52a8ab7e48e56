"""The sampler, hot-loads and evaluations, with the built-in server and the tiny model."""
