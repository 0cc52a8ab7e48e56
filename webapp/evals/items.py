"""The items of a suite with every compared answer beside them: what got worse first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from webapp.core.diffs import Piece, diff_texts, spare_unlike
from webapp.evals.answers import Answer, read_texts
from webapp.evals.comparison import ORDER, ComparedSample, Comparison, name_change

PREVIEW = 600  # characters of an answer in a table; the whole of it has a page


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRow:
    """`samples` stands in the order of the comparisons; None: one of the two has no answer."""

    index: int
    item: Mapping[str, Any]
    samples: Sequence[ComparedSample | None]
    change: str  # worse, where any got worse; else better, where any got better

    @property
    def number(self) -> int:
        return self.index + 1

    def count(self, change: str) -> int:
        return sum(sample is not None and sample.change == change for sample in self.samples)

    @property
    def before(self) -> Answer:
        return next(sample.before for sample in self.samples if sample is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One answer of a row: its score, how it changed, and its text in pieces."""

    score: float
    change: str
    pieces: Sequence[Piece]
    num_samples: int
    is_cut: bool


def list_rows(comparisons: Sequence[Comparison]) -> list[ItemRow]:
    """Regressions first, most of them before others; then what got better, then the same."""
    by_index = [{sample.index: sample for sample in each.samples} for each in comparisons]
    rows = [
        _make_row(index, [samples.get(index) for samples in by_index])
        for index in sorted({index for samples in by_index for index in samples})
    ]
    return sorted(
        rows,
        key=lambda row: (
            ORDER.index(row.change), -row.count("worse"), -row.count("better"), row.index,
        ),
    )  # fmt: skip


def _make_row(index: int, samples: Sequence[ComparedSample | None]) -> ItemRow:
    there = [sample for sample in samples if sample is not None]
    changes = {sample.change for sample in there}
    change = next(word for word in ORDER if word in changes)
    return ItemRow(index=index, item=there[0].item, samples=samples, change=change)


def select_rows(rows: Sequence[ItemRow], show: str) -> Sequence[ItemRow]:
    if show == "flips":
        return [row for row in rows if row.change != "same"]
    if show in ORDER:
        return [row for row in rows if row.change == show]
    return rows


def fill_rows(rows: Sequence[ItemRow]) -> list[tuple[ItemRow, list[Cell | None]]]:
    """With the texts of one page's rows: the baseline's cell first."""
    answers = [row.before for row in rows]
    answers += [sample.after for row in rows for sample in row.samples if sample is not None]
    texts = read_texts(answers)
    return [(row, _make_cells(row, texts)) for row in rows]


def _make_cells(row: ItemRow, texts: Mapping[int, str]) -> list[Cell | None]:
    baseline = texts[row.before.first]
    others = [
        None if sample is None else _make_cell(sample.after, baseline, texts, sample.before.score)
        for sample in row.samples
    ]
    pieces = _mark_baseline(baseline, row, texts)
    first = Cell(
        score=row.before.score,
        change="",
        pieces=pieces,
        num_samples=len(row.before.samples),
        is_cut=len(baseline) > PREVIEW,
    )
    return [first, *others]


def _mark_baseline(baseline: str, row: ItemRow, texts: Mapping[int, str]) -> Sequence[Piece]:
    """Beside one other, what that has not got is marked in the baseline's too."""
    if len(row.samples) > 1 or row.samples[0] is None:
        return [Piece(text=cut(baseline), is_changed=False)]
    other = texts[row.samples[0].after.first]
    return spare_unlike(diff_texts(cut(baseline), cut(other))[0])


def _make_cell(answer: Answer, baseline: str, texts: Mapping[int, str], before: float) -> Cell:
    text = texts[answer.first]
    return Cell(
        score=answer.score,
        change=name_change(before, answer.score),
        pieces=spare_unlike(diff_texts(cut(baseline), cut(text))[1]),
        num_samples=len(answer.samples),
        is_cut=len(text) > PREVIEW,
    )


def cut(text: str) -> str:
    return text if len(text) <= PREVIEW else f"{text[:PREVIEW]} ..."
