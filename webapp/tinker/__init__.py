"""The Tinker wire protocol over the services."""
