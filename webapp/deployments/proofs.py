"""A load's proof as pages show it: token by token, and what took how long."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from webapp.deployments.models import HotLoad

PHASES = ("export", "transfer", "load", "probe")
WHAT = {
    "export": "the trainer wrote the files",
    "transfer": "they were opened, checked and restored",
    "load": "the server took them in",
    "probe": "its log-probabilities were compared",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedToken:
    """One token of the probe: what the trainer and the server think of it, in nats."""

    place: int
    id: int
    trainer: float
    server: float
    difference: float
    is_largest: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of a load. `begin` and `width` are of the whole time, in percent."""

    name: str
    what: str
    milliseconds: float
    begin: float
    width: float
    number: int


def compare_probe(load: HotLoad) -> list[ProbedToken]:
    """The first token of a sequence follows nothing, so there is no number for it."""
    probe = load.checkpoint.probe
    tokens, trainer = probe.get("tokens", []), probe.get("logprobs", [])
    pairs = list(zip(tokens[1:], trainer, load.server_logprobs, strict=False))
    differences = [abs(ours - theirs) for _, ours, theirs in pairs]
    largest = max(differences, default=0.0)
    return [
        ProbedToken(
            place=place,
            id=token,
            trainer=ours,
            server=theirs,
            difference=difference,
            is_largest=difference == largest,
        )
        for place, ((token, ours, theirs), difference) in enumerate(
            zip(pairs, differences, strict=True), start=2
        )
    ]


def list_phases(load: HotLoad | None) -> Sequence[Phase]:
    """Those that were measured, in their order."""
    if load is None:
        return []
    measured = [(name, getattr(load, f"{name}_milliseconds")) for name in PHASES]
    known = [(name, value) for name, value in measured if value is not None]
    total = sum(value for _, value in known) or 1.0
    ends = list(accumulate(value for _, value in known))
    return [
        Phase(
            name=name,
            what=WHAT[name],
            milliseconds=value,
            begin=100 * (end - value) / total,
            width=100 * value / total,
            number=PHASES.index(name) + 1,
        )
        for (name, value), end in zip(known, ends, strict=True)
    ]
