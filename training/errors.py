"""The one family of errors that training shows to its caller as it is."""


class InvalidInput(ValueError):  # noqa: N818 - the name says whose fault it is
    """The caller sent what cannot be trained on; the text names what, where and what to change."""
