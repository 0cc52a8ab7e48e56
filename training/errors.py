"""The one family of errors that training shows to its caller as it is."""


class InvalidInput(ValueError):
    """What the caller sent cannot be trained on; the text names what and where, and what to change."""
