"""Questions about a version's rows, asked of a worker once and kept with their answers."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from hashlib import sha256
from typing import Any

import orjson
from django.db.models import QuerySet
from django.utils.timezone import now

from training.errors import InvalidInput
from training.row_filters import check_filters, choice, flag, number
from webapp.accounts.models import Actor
from webapp.core.dispatch import ANALYSE_VERSION, send_task
from webapp.core.errors import UserError
from webapp.datasets.models import DatasetVersion
from webapp.datasets.records import Analysis
from webapp.fleet.services import find_base_model

ANNOUNCED = timedelta(seconds=10)
LOST = timedelta(minutes=2)  # a question that waits this long is asked again
KEPT = timedelta(days=30)

Kind = Analysis.Kind
Options = Mapping[str, Any]
Checked = dict[str, Any]


def request_analysis(
    *, actor: Actor, version: DatasetVersion, kind: str, options: Options
) -> Analysis:
    """Its result is None until a worker has found it."""
    if version.status != DatasetVersion.Status.READY:
        raise UserError(f"{version} is not ready: its rows can be looked at once it is.")
    checked = check_options(actor, version, kind, options)
    key = sha256(orjson.dumps(checked, option=orjson.OPT_SORT_KEYS)).hexdigest()
    analysis, is_new = Analysis.objects.get_or_create(
        version=version, kind=kind, key=key, defaults={"options": checked}
    )
    if is_new or _take_lost(Analysis.objects.filter(pk=analysis.pk), LOST):
        send_task(ANALYSE_VERSION, str(analysis.pk))
    return analysis


def retry_analysis(
    *, actor: Actor, version: DatasetVersion, kind: str, options: Options
) -> Analysis:
    """Once more where it has failed."""
    Analysis.objects.filter(version=version, kind=kind).exclude(error="").delete()
    return request_analysis(actor=actor, version=version, kind=kind, options=options)


def _take_lost(rows: QuerySet[Analysis], age: timedelta) -> bool:
    lost = rows.filter(result__isnull=True, error="", created_at__lt=now() - age)
    return lost.update(created_at=now()) > 0


def announce_analyses() -> None:
    """For messages that were lost and workers that died: who is at it already is not disturbed."""
    late = Analysis.objects.filter(result__isnull=True, error="")
    for pk in late.filter(created_at__lt=now() - ANNOUNCED).values_list("pk", flat=True):
        send_task(ANALYSE_VERSION, str(pk))


def forget_analyses() -> None:
    """They are found again where somebody asks."""
    Analysis.objects.filter(created_at__lt=now() - KEPT).delete()


def check_options(actor: Actor, version: DatasetVersion, kind: str, options: Options) -> Checked:
    if kind not in Kind.values:
        raise UserError(f"The kind is one of {', '.join(Kind.values)}.", field="kind")
    allowed = ALLOWED[kind]
    if unknown := sorted(str(key) for key in options.keys() - set(allowed)):
        raise UserError(
            f"{kind} has no option {unknown[0]!r:.60}; it has {', '.join(allowed)}.",
            field=unknown[0][:60],
        )
    try:
        return CHECKS[kind](actor, version, options)
    except InvalidInput as error:
        raise UserError(f"{error}.", field="options") from error


def check_filter_options(actor: Actor, version: DatasetVersion, options: Options) -> Checked:
    filters = check_filters(options.get("filters", []))
    return {
        "filters": [resolve_filter(actor, version, each) for each in filters],
        "split": check_split(options.get("split")),
    }


def resolve_filter(actor: Actor, version: DatasetVersion, spec: Checked) -> Checked:  # noqa: ARG001
    """Names become ids, and a run's losses those up to its step now."""
    if "base_model" in spec:
        return spec | {"base_model": find_base_model(spec["base_model"]).pk}
    if spec["filter"] == "losses":
        run = version.runs.filter(pk=spec["run"]).first()
        if run is None:
            raise UserError(f"No run {spec['run']} learned from {version}.", field="run")
        return spec | {"run": run.pk}
    return spec


def check_split(split: Any) -> Checked | None:
    if not split:
        return None
    if not isinstance(split, Mapping) or "held_out_share" not in split:
        raise InvalidInput("split is not an object with held_out_share and seed")
    return {
        "held_out_share": number(0.001, 0.999, float)(
            "split.held_out_share", split["held_out_share"]
        ),
        "seed": number(0, 2**31)("split.seed", split.get("seed", 0)),
        "by_prompt": flag("split.by_prompt", split.get("by_prompt", False)),
    }


def check_twins(_actor: Actor, _version: DatasetVersion, options: Options) -> Checked:
    return {"threshold": check_threshold(options)}


def check_threshold(options: Options) -> float:
    threshold: float = number(0.5, 1, float)("threshold", options.get("threshold", 0.8))
    return threshold


def check_leakage(actor: Actor, version: DatasetVersion, options: Options) -> Checked:
    checked = {
        "threshold": check_threshold(options),
        "compare": choice("row", "prompt")("compare", options.get("compare", "row")),
    }
    if suite_id := options.get("suite"):
        suite = actor.project.eval_suites.filter(pk=str(suite_id)).first()
        if suite is None:
            raise UserError(f"There is no eval suite {str(suite_id)[:60]}.", field="suite")
        return checked | {"suite": suite.pk, "compare": "prompt"}
    return checked | {"against": find_other(actor, version, options).pk}


def find_other(actor: Actor, version: DatasetVersion, options: Options) -> DatasetVersion:
    other_id = str(options.get("against", ""))
    other = DatasetVersion.objects.visible_to(actor).filter(pk=other_id).first()
    if other is None:
        raise UserError(f"There is no dataset version {other_id[:60]!r}.", field="against")
    if other.status != DatasetVersion.Status.READY:
        raise UserError(f"{other} is not ready.", field="against")
    if other.pk == version.pk:
        raise UserError("A version is compared with another one.", field="against")
    return other


def check_tokens(_actor: Actor, _version: DatasetVersion, options: Options) -> Checked:
    return {"base_model": find_base_model(str(options.get("base_model", ""))).pk}


def check_difference(actor: Actor, version: DatasetVersion, options: Options) -> Checked:
    return {"against": find_other(actor, version, options).pk}


ALLOWED: Mapping[str, tuple[str, ...]] = {
    Kind.FILTERS: ("filters", "split"),
    Kind.NEAR_DUPLICATES: ("threshold",),
    Kind.LEAKAGE: ("against", "suite", "threshold", "compare"),
    Kind.TOKENS: ("base_model",),
    Kind.DIFFERENCE: ("against",),
}
CHECKS: Mapping[str, Callable[[Actor, DatasetVersion, Options], Checked]] = {
    Kind.FILTERS: check_filter_options,
    Kind.NEAR_DUPLICATES: check_twins,
    Kind.LEAKAGE: check_leakage,
    Kind.TOKENS: check_tokens,
    Kind.DIFFERENCE: check_difference,
}
