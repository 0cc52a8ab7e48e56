"""manage.py commands: up, model, sampler."""
