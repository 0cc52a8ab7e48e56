"""Answers questions about a version's rows: what filters keep, twins, leaks, lengths, changes."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from training.data.filters import read_prompt, read_text
from training.data.histograms import count_lengths
from training.data.near_duplicates import Sketches, count_groups, find_twins
from training.data.rows import Row
from training.errors import InvalidInput
from training.row_filters import describe_filters
from webapp.core.events import project_group, publish
from webapp.datasets.models import DatasetVersion
from webapp.datasets.records import Analysis
from webapp.evals.models import EvalSuite
from webapp.fleet.models import BaseModel
from workers.claims import MAX_ATTEMPTS, claim
from workers.derive import make_chooser, make_count, make_sieve, read

MAX_SHOWN = 100  # pairs, or rows of a difference
MAX_CHARACTERS = 600  # of a row that is shown

Options = Mapping[str, Any]
Result = dict[str, Any]
Kind = Analysis.Kind


def analyse(analysis_id: str) -> None:
    with claim(f"analysis-{analysis_id}") as attempt:
        row = Analysis.objects.select_related("version").filter(pk=int(analysis_id)).first()
        if not attempt or row is None or not row.is_waiting:
            return
        if attempt > MAX_ATTEMPTS:
            _end(row, error=f"The process that looked at the rows ended {MAX_ATTEMPTS} times.")
            return
        try:
            _end(row, result=ANSWERS[row.kind](row.version, row.options))
        except InvalidInput as error:
            _end(row, error=str(error))


def fail(analysis_id: str, error: str) -> None:
    _end(Analysis.objects.select_related("version").get(pk=int(analysis_id)), error=error)


def _end(row: Analysis, **fields: Any) -> None:
    Analysis.objects.filter(pk=row.pk).update(**fields)
    publish(project_group(row.version.project_id), "datasets")


def count_kept(version: DatasetVersion, options: Options) -> Result:
    filters, split = options["filters"], options["split"]
    sieve = make_sieve(version, filters)
    choose = make_chooser(version, split) if split else None
    sides = Counter(choose(row) if choose else "" for row in sieve.keep(read(version)))
    return {
        "num_rows": sieve.num_rows,
        "num_kept": sieve.num_kept,
        "num_train": sides["train"],
        "num_held_out": sides["held_out"],
        "dropped": [
            {"filter": words, "num_rows": sieve.dropped[place]}
            for place, words in enumerate(describe_filters(filters))
        ],
    }


def find_near_duplicates(version: DatasetVersion, options: Options) -> Result:
    sketches, keys = Sketches(), Counter[bytes]()
    for row in read(version):
        keys[row.key[:12]] += 1
        sketches.add(read_text(row))
    twins = find_twins(sketches, threshold=options["threshold"])
    # Rows are lines of the normalised file: the number is the place.
    pairs = [(first + 1, row + 1, likeness) for row, (first, likeness) in sorted(twins.items())]
    return {
        "num_rows": len(sketches),
        "num_exact": keys.total() - len(keys),
        "num_twins": len(twins),
        "num_groups": count_groups(twins),
        "num_left_out": sketches.num_left_out,
        "pairs": show_pairs(version, version, pairs[:MAX_SHOWN]),
    }


def find_leaks(version: DatasetVersion, options: Options) -> Result:
    """Rows here that another version, or a suite, has too: the same, or nearly."""
    read_one = read_prompt if options["compare"] == "prompt" else read_text
    other, others = read_others(version, options)
    sketches, known = Sketches(), set[bytes]()
    for row in others:
        known.add(key_of(row, options))
        sketches.add(read_one(row))
    num_others, exact = len(sketches), array("L")
    for row in read(version):
        sketches.add(read_one(row))
        if key_of(row, options) in known:
            exact.append(row.number)
    twins = find_twins(sketches, threshold=options["threshold"], num_leaders=num_others)
    pairs = [
        (first + 1, row - num_others + 1, likeness)
        for row, (first, likeness) in sorted(twins.items())
    ]
    near = {pair[1] for pair in pairs} - set(exact)
    return {
        "other": other,
        "num_rows": len(sketches) - num_others,
        "num_others": num_others,
        "num_exact": len(exact),
        "num_near": len(near),
        "num_left_out": sketches.num_left_out,
        "num_pairs": len(pairs),
        "pairs": show_pairs(name_source(options), version, pairs[:MAX_SHOWN]),
    }


def key_of(row: Row, options: Options) -> bytes:
    return row.prompt_key if options["compare"] == "prompt" else row.key


def read_others(version: DatasetVersion, options: Options) -> tuple[str, Iterable[Row]]:
    if "suite" in options:
        suite = EvalSuite.objects.filter(pk=options["suite"], project=version.project_id).first()
        if suite is None:
            raise InvalidInput("the eval suite was deleted")
        return suite.name, read_items(suite)
    other = read_version(options)
    return str(other), read(other)


def name_source(options: Options) -> DatasetVersion | str:
    """The other version, or the id of the suite."""
    return str(options["suite"]) if "suite" in options else read_version(options)


def read_version(options: Options) -> DatasetVersion:
    rows = DatasetVersion.objects.select_related("dataset")
    other = rows.filter(pk=options["against"], status=DatasetVersion.Status.READY).first()
    if other is None:
        raise InvalidInput("the version to compare with was deleted")
    return other


def read_items(suite: EvalSuite) -> Iterable[Row]:
    for number, item in enumerate(suite.items, start=1):
        yield Row(number=number, messages=item.get("messages") or [])


def show_pairs(
    first: DatasetVersion | str, second: DatasetVersion, pairs: Sequence[tuple[int, int, float]]
) -> list[Result]:
    """Both rows of each pair, as people can read them."""
    lefts = read_texts(first, {left for left, _, _ in pairs})
    rights = read_texts(second, {right for _, right, _ in pairs})
    return [
        {
            "similarity": round(likeness, 4),
            "first": {"number": left, "text": lefts.get(left, "")},
            "second": {"number": right, "text": rights.get(right, "")},
        }
        for left, right, likeness in pairs
    ]


def read_texts(source: DatasetVersion | str, numbers: set[int]) -> dict[int, str]:
    if not numbers:
        return {}
    rows = read_items(EvalSuite.objects.get(pk=source)) if isinstance(source, str) else read(source)
    return {row.number: shorten_row(row) for row in rows if row.number in numbers}


def shorten_row(row: Row) -> str:
    text = read_text(row)
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} ..."


def measure_tokens(version: DatasetVersion, options: Options) -> Result:
    count, errors = make_count(options["base_model"], version.kind), Counter[str]()

    def lengths() -> Iterable[int]:
        for row in read(version):
            try:
                yield count(row)
            except InvalidInput as error:
                errors[str(error)] += 1

    context = BaseModel.objects.get(pk=options["base_model"]).context_tokens
    histogram = count_lengths(lengths(), context=context).to_json()
    common = [{"reason": reason, "num_rows": number} for reason, number in errors.most_common(3)]
    return histogram | {"num_refused": errors.total(), "refused": common}


def compare(version: DatasetVersion, options: Options) -> Result:
    """Rows are the same where they say the same; one that stands there twice counts twice."""
    other = read_version(options)
    before = Counter(row.key[:12] for row in read(other))
    after = Counter(row.key[:12] for row in read(version))
    added, removed = after - before, before - after
    return {
        "other": str(other),
        "num_added": added.total(),
        "num_removed": removed.total(),
        "num_same": (after & before).total(),
        "added": show_rows(version, added),
        "removed": show_rows(other, removed),
    }


def show_rows(version: DatasetVersion, wanted: Counter[bytes]) -> list[Result]:
    shown: list[Result] = []
    left = Counter(wanted)
    for row in read(version) if wanted else ():
        if len(shown) == MAX_SHOWN:
            break
        if left[row.key[:12]] > 0:
            left[row.key[:12]] -= 1
            shown.append({"number": row.number, "text": shorten_row(row)})
    return shown


ANSWERS: Mapping[str, Callable[[DatasetVersion, Options], Result]] = {
    Kind.FILTERS: count_kept,
    Kind.NEAR_DUPLICATES: find_near_duplicates,
    Kind.LEAKAGE: find_leaks,
    Kind.TOKENS: measure_tokens,
    Kind.DIFFERENCE: compare,
}
