"""Answers that are known already: the same weights were asked the same, with the same settings."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

from webapp.evals.models import EvalResult, EvalSuite, Evaluation

CHUNK = 500
OF_SEVERAL = ("num_samples", "pass_at")  # settings that no single call has
COPIED = ("completion", "num_tokens", "stop_reason", "checkpoint_id", "digest", "content_key")
Slot = tuple[int, int]  # the item's index, and which of its samples


def list_slots(suite: EvalSuite) -> list[Slot]:
    count = suite.sampling.get("num_samples", 1)
    return [(index, sample) for index in range(suite.num_items) for sample in range(count)]


def choose_params(suite: EvalSuite, sample: int) -> dict[str, Any]:
    """Each sample has a seed of its own, which does not depend on how many there are."""
    own = {
        key: value for key, value in suite.sampling.items() if key not in ("num_samples", "pass_at")
    }
    return own | {"seed": int(own.get("seed", 0)) + sample}


def make_key(digest: str, payload: Mapping[str, Any], sample: int) -> str:
    """Of weights, prompt, tools, settings and the number of the sample. Empty: of none known."""
    if not digest:
        return ""
    asked = [payload["messages"], payload.get("tools"), payload["params"]]
    return sha256(json.dumps([digest, asked, sample], sort_keys=True).encode()).hexdigest()


def find_known(evaluation: Evaluation, keys: Mapping[Slot, str]) -> list[EvalResult]:
    """New results, not stored yet. With their grades, where this very suite gave them."""
    found: dict[str, EvalResult] = {}
    for earlier in _read(evaluation, [key for key in keys.values() if key]):
        kept = found.get(earlier.content_key)
        if kept is None or _is_of(earlier, evaluation) > _is_of(kept, evaluation):
            found[earlier.content_key] = earlier
    return [
        _copy(found[key], evaluation, slot) for slot, key in keys.items() if key and key in found
    ]


def _read(evaluation: Evaluation, keys: Sequence[str]) -> Iterator[EvalResult]:
    answered = EvalResult.objects.filter(evaluation__project=evaluation.project_id, error="")
    for chunk in _cut(sorted(set(keys))):
        rows = answered.filter(content_key__in=chunk)
        yield from rows.select_related("evaluation").order_by("-pk")


def _cut(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    return (keys[at : at + CHUNK] for at in range(0, len(keys), CHUNK))


def _is_of(result: EvalResult, evaluation: Evaluation) -> bool:
    return result.evaluation.suite_id == evaluation.suite_id and bool(result.scores)


def _copy(earlier: EvalResult, evaluation: Evaluation, slot: Slot) -> EvalResult:
    graded = _is_of(earlier, evaluation) and _is_same_item(earlier, slot)
    return EvalResult(
        evaluation=evaluation,
        index=slot[0],
        sample=slot[1],
        scores=earlier.scores if graded else {},
        notes=earlier.notes if graded else {},
        judges=earlier.judges if graded else {},
        **{name: getattr(earlier, name) for name in COPIED},
    )


def _is_same_item(earlier: EvalResult, slot: Slot) -> bool:
    """Two items may ask the same and want different answers."""
    return (earlier.index, earlier.sample) == slot
