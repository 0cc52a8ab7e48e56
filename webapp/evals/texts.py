"""Two answers in full: in the model's own tokens while they are known, else in words."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from webapp.core.long_diffs import SECONDS, LongDiff, diff_long, split_words
from webapp.deployments.models import SamplingCall
from webapp.evals.models import EvalResult

MOST_SAMPLES = 64  # of one item: the call of each is looked at
FOLDED = 12  # lines that both have: more than these fold away


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerDiff:
    """`unit` is what was compared: token or word."""

    diff: LongDiff
    unit: str
    folded: int = FOLDED

    @property
    def note(self) -> str:
        if self.diff.is_same:
            return "The two answers are the same, letter by letter."
        told = f"Marked is what the other has not got there, by {self.unit}."
        if not self.diff.num_coarse:
            return told
        stretches = "1 stretch was" if self.diff.num_coarse == 1 else (
            f"{self.diff.num_coarse} stretches were"
        )  # fmt: skip
        return (
            f"{told} {stretches} too long to compare by {self.unit} in time: there all lines"
            " between two equal ends are marked."
        )


def diff_answers(first: EvalResult, second: EvalResult, *, seconds: float = SECONDS) -> AnswerDiff:
    before, after = read_pieces(first), read_pieces(second)
    if before is not None and after is not None:
        return AnswerDiff(diff=diff_long(before, after, seconds=seconds), unit="token")
    words = split_words(first.completion), split_words(second.completion)
    return AnswerDiff(diff=diff_long(*words, seconds=seconds), unit="word")


def read_pieces(result: EvalResult) -> Sequence[str] | None:
    """The answer's tokens as text, from the call that made it. Calls are forgotten after a day, and
    what a server wrote in pieces may not be what was kept: None.
    """
    about = {"about__evaluation": result.evaluation_id, "about__index": result.index}
    calls = SamplingCall.objects.filter(status=SamplingCall.Status.DONE, **about)
    results = calls.exclude(result=None).values_list("result", flat=True)[:MOST_SAMPLES]
    cuts = (
        _cut_at(sequence.get("pieces") or [], result.completion)
        for kept in results
        for sequence in json.loads(bytes(kept or b"{}")).get("sequences", [])
    )
    return next((cut for cut in cuts if cut), None)


def _cut_at(pieces: Sequence[str], text: str) -> Sequence[str] | None:
    """Those that make up the text: a mark that ended it is in none. None: they do not."""
    lengths = list(accumulate(map(len, pieces)))
    if len(text) not in lengths:
        return None
    cut = pieces[: lengths.index(len(text)) + 1]
    return cut if "".join(cut) == text else None
