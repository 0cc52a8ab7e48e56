"""The one family of errors that training shows to its caller as it is."""

MOST_CHARACTERS = 600  # of what is said; what it quotes may be megabytes of one word


class InvalidInput(ValueError):  # noqa: N818 - the name says whose fault it is
    """The caller sent what cannot be trained on; the text names what, where and what to change."""

    def __init__(self, message: str) -> None:
        super().__init__(shorten(message))


def shorten(message: str) -> str:
    """Its beginning and its end, where it is long; and without what no database stores."""
    plain = message.replace("\0", "\\0")
    if len(plain) <= MOST_CHARACTERS:
        return plain
    half = MOST_CHARACTERS // 2
    return f"{plain[:half]} ... {plain[-half:]}"
