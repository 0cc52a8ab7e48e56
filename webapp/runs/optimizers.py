"""The parameters of one optimizer step, as the run's optimizer takes them."""

from dataclasses import asdict
from typing import Any

from training.types import AdamParams, DimuonParams
from webapp.core.errors import UserError
from webapp.core.fields import Fields
from webapp.runs.models import Run

MOST = 1e15  # products and quotients of two of them are still numbers of the device


def read_params(run: Run, fields: Fields) -> dict[str, Any]:
    """The step's payload. Parameters of another optimizer than the run's are refused."""
    if not fields.has("optimizer_params"):
        check_kind(run, "adam_params", "adamw")
        return {"adam_params": asdict(read_adam(fields.inner("adam_params")))}
    given = fields.inner("optimizer_params")
    check_kind(run, "optimizer_params", given.text("type", ""))
    if run.optimizer == "adamw":
        raise UserError("optimizer_params of the type adamw are not read here: send adam_params.")
    return {"dimuon_params": asdict(read_dimuon(given))}


def check_kind(run: Run, field: str, kind: str) -> None:
    if kind != run.optimizer:
        wanted = {"adamw": "adam_params", "dimuon": "optimizer_params of the type dimuon"}
        raise UserError(
            f"{field} are for the optimizer {kind[:60] or 'without a name'}, but this model was"
            f" created with {run.optimizer}: send {wanted[run.optimizer]}."
        )


def read_adam(given: Fields) -> AdamParams:
    defaults = asdict(AdamParams())
    numbers = read_numbers(given, defaults, "adam_params")
    for name, value in numbers.items():
        check_number(f"adam_params.{name}", value)
    return AdamParams(**numbers)


def read_dimuon(given: Fields) -> DimuonParams:
    """A grad_clip_norm below 0 is as good as 0: nothing is clipped."""
    if not given.has("learning_rate"):
        raise UserError("optimizer_params.learning_rate is missing: dimuon has no default of it.")
    defaults = asdict(DimuonParams(learning_rate=0.0))
    numbers = read_numbers(given, {"type": "", **defaults}, "optimizer_params")
    for name in ("learning_rate", "beta1"):
        check_number(f"optimizer_params.{name}", numbers[name])
    return DimuonParams(**numbers)


def read_numbers(given: Fields, defaults: dict[str, Any], where: str) -> dict[str, float]:
    unknown = set(given.values) - set(defaults)
    if unknown:
        raise UserError(f"{where}.{min(unknown)} is unknown: send {', '.join(defaults)}.")
    return {key: given.number(key, defaults[key]) for key in defaults if key != "type"}


def check_number(where: str, value: float) -> None:
    is_share = where.rpartition(".")[2].startswith("beta")
    if not 0 <= value <= MOST or (is_share and value >= 1):
        bounds = "from 0 to below 1" if is_share else f"of 0 or more, and up to {MOST:g}"
        raise UserError(f"{where} is {value}: send a number {bounds}.")
