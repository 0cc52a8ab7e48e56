"""Every write to base models and workers."""

from pathlib import Path

from django.db import IntegrityError, transaction
from django.db.models import ProtectedError
from django.utils.timezone import now

from webapp.core.errors import NotFound, UserError
from webapp.fleet.directories import inspect_directory
from webapp.fleet.models import BaseModel, BaseModelName, Worker


def add_base_model(*, path: str, names: list[str]) -> BaseModel:
    """Offer a directory under these names. A directory that is offered already gains the names."""
    cleaned = [name.strip() for name in names if name.strip()]
    if not cleaned:
        raise UserError("Give at least one name that clients may ask for.", field="names")
    directory = inspect_directory(Path(path).expanduser().resolve())
    with transaction.atomic():
        base_model, _ = BaseModel.objects.update_or_create(
            path=str(directory.path),
            defaults={
                "architecture": directory.architecture,
                "num_parameters": directory.num_parameters,
                "context_tokens": directory.context_tokens,
                "vocab_size": directory.vocab_size,
                "has_chat_template": directory.has_chat_template,
                "digest": directory.digest,
            },
        )
        for name in cleaned:
            _add_name(base_model, name)
    return base_model


def _add_name(base_model: BaseModel, name: str) -> None:
    try:
        with transaction.atomic():
            BaseModelName.objects.get_or_create(base_model=base_model, name=name)
    except IntegrityError:
        taken = BaseModel.objects.get(names__name=name)
        raise UserError(f"{name} is already the name of {taken.path}.", field="names") from None


def remove_base_model(*, name: str) -> None:
    """Stop offering it. The directory itself stays as it is."""
    base_model = find_base_model(name)
    try:
        base_model.delete()
    except ProtectedError:
        raise UserError(
            f"{name} is used by runs, deployments or evaluations; delete those first."
        ) from None


def find_base_model(name: str) -> BaseModel:
    """By any of its names, or by id."""
    found = (
        BaseModel.objects.filter(names__name=name).first()
        or BaseModel.objects.filter(pk=name).first()
    )
    if found is None:
        offered = BaseModelName.objects.values_list("name", flat=True)[:20]
        listing = ", ".join(offered) or "none yet"
        raise NotFound(f"This installation offers no base model {name}. It offers: {listing}.")
    return found


def register_worker(
    *, name: str, kind: str, device: str, memory_bytes: int, flops: float, pid: int
) -> Worker:
    worker, _ = Worker.objects.update_or_create(
        name=name,
        defaults={
            "kind": kind,
            "device": device,
            "memory_bytes": memory_bytes,
            "flops": flops,
            "pid": pid,
            "started_at": now(),
            "heartbeat_at": now(),
            "holds": {},
        },
    )
    return worker


def beat_worker(*, name: str, holds: dict[str, object]) -> None:
    Worker.objects.filter(name=name).update(heartbeat_at=now(), holds=holds)


def remove_worker(*, name: str, pid: int) -> None:
    """A worker that ends in order takes its row along; a killed one is shown as lost."""
    Worker.objects.filter(name=name, pid=pid).delete()  # not the row of the one that follows it
