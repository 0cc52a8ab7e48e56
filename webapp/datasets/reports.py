"""A version's report, and a preview's numbers, in the words of stat cards: label, value, note."""

from collections.abc import Mapping, Sequence
from typing import Any

from django.http import HttpRequest

from webapp.core.curl import JSON, KEY
from webapp.core.templatetags.hone import count, size
from webapp.datasets.models import DatasetVersion

Stat = tuple[str, str, str]

# What a row is, and what it is for.
KIND_WORDS = {
    "conversation": "Conversations",
    "prompt_completion": "Prompts with completions",
    "preference": "Preference pairs",
    "prompt": "Prompts with a reference answer",
    "text": "Plain text",
}
KIND_USES = {
    "conversation": "Learned as they are: every turn of the assistant.",
    "prompt_completion": "Learned as they are: the completion after its prompt.",
    "preference": "Two answers to a prompt, of which one is preferred: for DPO and reward models.",
    "prompt": "Answered anew and graded against the reference: for reinforcement learning.",
    "text": "Read on from the first word to the last, without roles.",
}


def describe_report(version: DatasetVersion) -> Sequence[Stat]:
    report: Mapping[str, Any] = version.report
    if "num_rows" not in report:
        return []
    duplicates, turns = report["num_duplicates"], report["num_turns_max"]
    lowest, highest = report["min_characters"], report["max_characters"]
    share = version.num_bad / max(1, version.num_bad + report["num_rows"])
    return [
        ("Rows", count(report["num_rows"]), f"{count(duplicates)} duplicates"),
        ("Bad lines", count(version.num_bad), f"{share:.1%} of all" if version.num_bad else "none"),
        (
            "Characters a row",
            count(report["median_characters"]),
            f"median; {count(lowest)} to {count(highest)}",
        ),
        ("Messages a row", count(turns), "at most"),
        ("File", size(version.size_bytes), version.format),
    ]


def describe_preview(stats: Mapping[str, Any]) -> Sequence[Stat]:
    if not stats:
        return []
    sampled, mean = stats["rows_sampled"], stats["mean_tokens"]
    learned = stats["mean_weighted"]
    share = f"{learned / mean:.0%} of the row" if mean else ""
    context = f"over {count(stats['context_tokens'])}, the model's context"
    return [
        ("Tokens a row", count(mean), f"mean of {count(sampled)} rows"),
        ("Learned a row", count(learned), share),
        ("Longest row", count(stats["longest_tokens"]), "tokens"),
        ("Too long", count(stats["num_too_long"]), context),
    ]


def write_rest(request: HttpRequest, version: DatasetVersion) -> str:
    url = request.build_absolute_uri("/rest/dataset-versions")
    return (
        f"curl {KEY} -F 'name={version.dataset.name}' -F 'file=@{version.filename}' {url}\n"
        f"curl {KEY} {url}/{version.pk}"
    )


def write_derive_rest(request: HttpRequest, version: DatasetVersion) -> str:
    url = request.build_absolute_uri(f"/rest/dataset-versions/{version.pk}")
    filters = '[{"filter": "length", "least": 10}, {"filter": "duplicates"}]'
    split = '{"held_out_share": 0.1, "seed": 0}'
    return (
        f'curl {KEY} {JSON} -d \'{{"filters": {filters}, "split": {split}}}\' {url}/derived\n'
        f'curl {KEY} {JSON} -d \'{{"kind": "near_duplicates", "options": {{}}}}\' {url}/analyses'
    )
