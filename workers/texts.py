"""The text of a sample while it grows: no half characters, and nothing to be taken back."""

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream

from training.data.tokenizer import ChatTokenizer, show_nul


class GrowingText:
    """What a reader may see of one sample after each token.

    Held back: bytes of a character that is not complete, the beginning of what may become one of
    `stops` or `marks`, and everything from a mark on, which is no text for readers.
    """

    def __init__(
        self, tokenizer: ChatTokenizer, *, stops: Sequence[str] = (), marks: Sequence[str] = ()
    ) -> None:
        self.tokenizer = tokenizer.tokenizer
        self.stream = DecodeStream(skip_special_tokens=True)
        self.spelling = DecodeStream(skip_special_tokens=False)
        self.ends = (*stops, *marks)
        self.longest = max((len(each) for each in self.ends), default=0)
        self.text = ""
        self.num_told = 0
        self.is_over = False

    def spell(self, token: int) -> str:
        """The token by itself. A character of several tokens is the last one's."""
        return show_nul(self.spelling.step(self.tokenizer, token) or "")

    def add(self, token: int) -> str:
        """What can be told now."""
        self.text += show_nul(self.stream.step(self.tokenizer, token) or "")
        if self.is_over:
            return ""
        begin, limit = self.num_told, self._find_limit()
        self.num_told = max(begin, limit)
        return self.text[begin : self.num_told]

    def _find_limit(self) -> int:
        found = [place for end in self.ends if (place := self.text.find(end, self.num_told)) >= 0]
        if found:
            self.is_over = True
            return min(found)
        return len(self.text) - self._count_held()

    def _count_held(self) -> int:
        """Characters at the end that may be the beginning of an end."""
        most = min(self.longest - 1, len(self.text) - self.num_told)
        tails = (self.text[len(self.text) - count :] for count in range(most, 0, -1))
        begun = (tail for tail in tails if any(end.startswith(tail) for end in self.ends))
        return len(next(begun, ""))


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """Up to the first of the stop strings: they are no part of an answer."""
    found = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(found)] if found else text
