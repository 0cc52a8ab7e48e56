"""From where on a diagnostic speaks: the numbers that a project may set for itself."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.utils.timezone import now

from webapp.accounts.audit import record_audit
from webapp.accounts.models import Actor, Role
from webapp.core.errors import UserError
from webapp.runs.diagnostics import BY_KEY
from webapp.runs.records import Look, ProjectThreshold

LOOKED_AT_AGAIN = timedelta(days=1)  # runs in which something came since are, after a change


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The thresholds of one project; the defaults are those of all."""

    sequential_share: float = 0.8
    lost_share: float = 0.01
    saves_behind: int = 2
    difference: float = 0.01  # more is no matter of rounding
    stale_difference: float = 0.1
    zero_share: float = 0.5
    expires_hours: int = 24
    loss_factor: float = 2.0
    norm_factor: float = 20.0
    rises: int = 3
    rise_share: float = 0.02
    length_correlation: float = 0.6
    repeated_share: float = 0.5
    hacked_share: float = 0.2
    age_steps: float = 8.0
    clipped_share: float = 0.3


DEFAULTS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A field of `Limits`, as people see it."""

    key: str
    diagnostic: str
    meaning: str
    low: float
    high: float
    is_whole: bool = False

    @property
    def default(self) -> float:
        value: float = getattr(DEFAULTS, self.key)
        return value

    @property
    def title(self) -> str:
        return BY_KEY[self.diagnostic].title

    @property
    def between(self) -> str:
        return f"{'a whole number ' if self.is_whole else ''}from {self.low:g} to {self.high:g}"


def _list(
    diagnostic: str, *rows: tuple[str, str, float, float], is_whole: bool = False
) -> list[Threshold]:
    return [
        Threshold(
            key=key, diagnostic=diagnostic, meaning=meaning, low=low, high=high, is_whole=is_whole
        )
        for key, meaning, low, high in rows
    ]


THRESHOLDS: tuple[Threshold, ...] = (
    *_list(
        "sequential_client",
        ("sequential_share", "Share of steps that wait, at least", 0, 1),
        ("lost_share", "Share of the time that is lost, at least", 0, 1),
    ),
    *_list(
        "stale_sampler",
        ("saves_behind", "Saves that the sampled weights are behind, at least", 1, 60),
        is_whole=True,
    ),
    *_list(
        "sampler_trainer_disagree",
        ("difference", "Difference on fresh samples, nats a token, above", 0, 100),
        ("stale_difference", "Difference on older samples, nats a token, above", 0, 100),
    ),
    *_list(
        "zero_signal_groups",
        ("zero_share", "Share of answers or groups without a signal, at least", 0.01, 1),
    ),
    *_list(
        "checkpoint_will_expire",
        ("expires_hours", "Hours that are left, fewer than", 1, 720),
        is_whole=True,
    ),
    *_list(
        "non_finite_or_spiking",
        ("loss_factor", "Loss, times its median, above", 1, 1000),
        ("norm_factor", "Gradient norm, times its median, above", 1, 100_000),
    ),
    *_list(
        "memorising",
        ("rises", "Evaluations in a row at which the held-out loss rises", 2, 100),
        is_whole=True,
    ),
    *_list(
        "memorising",
        ("rise_share", "Share by which it is above its best, more than", 0, 10),
    ),
    *_list(
        "reward_hacking",
        ("length_correlation", "Correlation of length and reward, at least", 0, 1),
        ("repeated_share", "Share of an answer that is repeated phrases, at least", 0.01, 1),
        ("hacked_share", "Share of the rewarded answers that show it, at least", 0.01, 1),
    ),
    *_list(
        "off_policy",
        ("age_steps", "Age of samples in optimizer steps, above", 0, 10_000),
        ("clipped_share", "Share of tokens whose ratio is clipped, above", 0, 1),
    ),
)
THRESHOLDS_BY_KEY: Mapping[str, Threshold] = {each.key: each for each in THRESHOLDS}


def read_limits(project_id: str) -> Limits:
    rows = ProjectThreshold.objects.filter(project=project_id, key__in=THRESHOLDS_BY_KEY)
    own = {key: _cast(key, value) for key, value in rows.values_list("key", "value")}
    return replace(DEFAULTS, **own)  # type: ignore[arg-type]


def read_values(project_id: str) -> dict[str, float]:
    return asdict(read_limits(project_id))


def check_owner(actor: Actor) -> None:
    if actor.role != Role.OWNER:
        raise UserError("Only an owner of the project can change when its diagnostics speak.")


@transaction.atomic
def set_thresholds(*, actor: Actor, values: Mapping[str, Any]) -> None:
    """None is the default again, and so is the default's own value. Nothing is set where one of
    them cannot be."""
    check_owner(actor)
    checked = {key: _check(key, value) for key, value in values.items()}
    before = read_values(actor.project.pk)
    for key, value in checked.items():
        if value != before[key]:
            _set(actor, THRESHOLDS_BY_KEY[key], before[key], value)
    if any(value != before[key] for key, value in checked.items()):
        _look_again(actor)


def reset_thresholds(*, actor: Actor) -> None:
    set_thresholds(actor=actor, values=dict.fromkeys(THRESHOLDS_BY_KEY))


def _check(key: str, value: Any) -> float:
    threshold = THRESHOLDS_BY_KEY.get(key)
    if threshold is None:
        known = ", ".join(THRESHOLDS_BY_KEY)
        raise UserError(f"There is no threshold {key!r:.60}; there are {known}.")
    if value is None:
        return threshold.default
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not threshold.low <= value <= threshold.high or _is_cut(threshold, value):
        raise UserError(f"{key} is {value!r:.60}: give {threshold.between}.", field=key)
    return _cast(key, value)


def _is_cut(threshold: Threshold, value: float) -> bool:
    return threshold.is_whole and value != int(value)


def _cast(key: str, value: float) -> float:
    return int(value) if THRESHOLDS_BY_KEY[key].is_whole else float(value)


def _set(actor: Actor, threshold: Threshold, before: float, value: float) -> None:
    rows = ProjectThreshold.objects.filter(project=actor.project, key=threshold.key)
    if value == threshold.default:
        rows.delete()
    else:
        ProjectThreshold.objects.update_or_create(
            project=actor.project, key=threshold.key, defaults={"value": value}
        )
    told = {"threshold": threshold.key, "before": before, "now": value}
    record_audit(project=actor.project, user=actor.user, event="threshold_changed", **told)


def _look_again(actor: Actor) -> None:
    """Of what ended long ago the log may be gone: what was found there stays as it is."""
    recent = Look.objects.filter(
        run__project=actor.project, run__last_request_at__gte=now() - LOOKED_AT_AGAIN
    )
    recent.update(looked_at=None)
