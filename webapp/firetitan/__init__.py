"""The Fireworks wire protocol over the services."""
