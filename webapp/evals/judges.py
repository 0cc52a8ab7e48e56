"""Who judged: the digests of the weights that the judges of an evaluation answered with."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from training.recipes.graders import KINDS
from webapp.evals.models import EvalResult, Evaluation
from webapp.evals.naming import name_subject

SHOWN = 12  # letters of a digest in a sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Judges:
    """Of two evaluations by one grader. `text` is empty where nothing is to be said."""

    text: str = ""
    are_different: bool = False


SAME_JUDGES = Judges()  # or none


def is_judged(grader: str) -> bool:
    return grader in KINDS and KINDS[grader].place == "judge"


def collect_judges(results: Iterable[EvalResult]) -> dict[str, list[str]]:
    """By grader; several where the judge's name came to mean other weights meanwhile."""
    pairs = {pair for result in results for pair in result.judges.items() if pair[1]}
    return {
        name: sorted(digest for grader, digest in pairs if grader == name)
        for name in sorted({grader for grader, _ in pairs})
    }


def list_judges(evaluation: Evaluation, grader: str) -> Sequence[str]:
    """Empty: nobody judged, or it was not kept who did."""
    found: Sequence[str] = evaluation.served.get("judges", {}).get(grader, ())
    return found


def compare_judges(first: Evaluation, second: Evaluation, grader: str) -> Judges:
    if not is_judged(grader):
        return SAME_JUDGES
    sides = [(each, list_judges(each, grader)) for each in (first, second)]
    unknown = [name_subject(each) for each, digests in sides if not digests]
    if unknown:
        return Judges(
            text=f"Which weights judged {' and '.join(unknown)} was not kept: whether one judge"
            " judged both is not known."
        )
    before, after = (digests for _, digests in sides)
    if before == after and len(before) == 1:
        return SAME_JUDGES
    told = ", and ".join(
        f"{name_subject(each)} by {write_judges(digests)}" for each, digests in sides
    )
    return Judges(
        text=f"They were not judged by the same weights: {told}. What differs between their scores"
        " may be the judges'. Evaluate both again, with everything asked again.",
        are_different=True,
    )


def write_judges(digests: Sequence[str]) -> str:
    return " and ".join(digest[:SHOWN] for digest in digests)
