"""A run's life: begun, driven by its recipe, steered by people, ended."""

from dataclasses import fields
from datetime import timedelta
from typing import Any

from django.apps import apps
from django.db import transaction
from django.utils.timezone import now

from training.errors import InvalidInput
from training.recipes.config import RecipeConfig
from training.requests import OWN_READINGS
from training.types import LORA_ALPHA, MAX_RANK
from webapp.accounts.models import Actor, Project
from webapp.core.dispatch import TRAIN_RUN, send_task
from webapp.core.errors import UserError
from webapp.core.events import project_group, publish, run_group
from webapp.datasets.models import DatasetVersion
from webapp.fleet.models import BaseModel
from webapp.runs.endings import tell_end
from webapp.runs.methods import METHODS, check_kind, find_method
from webapp.runs.models import LogLine, Operation, Run, RunGroup, Session
from webapp.runs.room import predict_bytes
from webapp.runs.teachers import check_reward_models, check_teacher

NOT_OF_THE_RECIPE = ("eval_suite",)  # of a run's config: the worker sees to it
LONGEST_SILENCE = timedelta(minutes=10)  # the SDK beats every 10 s and itself gives up after 2 min
LONGEST_NAME = 120  # of the column
FINISH_REASONS = ("success", "errored", "interrupted")  # a program gives; silence is "lost"
LORA_FLAGS = ("train_mlp", "train_attn", "train_unembed")
SHARED_HEAD = (
    "the model's output head and its input embedding are the same weights, and this run trains one"
    " of them; PEFT serves the adapter as it was trained, but a merge into the base model would"
    " change both"
)

Status = Run.Status
Wish = Run.Wish


def create_run(  # noqa: PLR0913 - the row's columns, by name
    *,
    actor: Actor,
    origin: str,
    name: str,
    base_model: BaseModel,
    dataset_version: DatasetVersion | None,
    config: dict[str, Any],
    parent: Any | None = None,
    with_optimizer: bool = False,
    recipe: str = "sft",
    after: Run | None = None,
    group: RunGroup | None = None,
) -> Run:
    """Queue a run of a recipe. `parent` is the checkpoint whose weights it begins with.

    One that follows `after` waits until that one is done, and goes on with what it made.
    """
    check_version(dataset_version, recipe)
    check_parent(parent, base_model, with_optimizer)
    config = config if parent is None else take_shape(config, parent)
    config = check_config(note_splits(config, dataset_version), recipe)
    check_suite(actor.project, config.get("eval_suite"))
    check_teacher(actor.project, config.get("teacher"))
    check_reward_models(actor.project, config.get("graders"))
    predicted = predict_bytes(dataset_version, base_model, read_recipe(config, recipe))
    learned = dataset_version.dataset if dataset_version is not None else METHODS[recipe].label
    given = name.strip() or f"{learned} on {base_model.short_name}"
    with transaction.atomic():
        run = Run.objects.create(
            project=actor.project,
            created_by=actor.user,
            name=given[:LONGEST_NAME],
            origin=origin,
            recipe=recipe,
            base_model=base_model,
            dataset_version=dataset_version,
            rank=config["rank"],
            lora=parent.run.lora if parent is not None else choose_shape(config),
            config=config,
            predicted_bytes=predicted,
            parent=parent,
            with_optimizer=with_optimizer,
            after=after,
            group=group,
        )
        begins = f"the checkpoint {parent.name}" if parent is not None else str(base_model)
        learns = ", all weights" if run.is_full else ""
        rows = f" on {dataset_version}" if dataset_version is not None else ""
        add_log(run, f"Queued: {recipe}{rows}, from {begins}{learns}.")
        send_task(TRAIN_RUN, run.pk)
        announce(run)
    return run


def check_suite(project: Project, suite_id: Any) -> None:
    """Its app lies above this one, so it is found by name."""
    if suite_id is None:
        return
    suites = apps.get_model("evals", "EvalSuite").objects.filter(project=project)
    if not isinstance(suite_id, str) or not suites.filter(pk=suite_id).exists():
        raise UserError(
            f"There is no suite {suite_id!r:.60} in the run's project.", field="eval_suite"
        )


def check_version(version: DatasetVersion | None, recipe: str) -> None:
    if version is not None and version.status != DatasetVersion.Status.READY:
        raise UserError(f"{version} is not ready yet.", field="dataset_version")
    check_kind(find_method(recipe), version)


def check_config(config: dict[str, Any], recipe: str) -> dict[str, Any]:
    """Every setting, defaults filled in; what is wrong is said now, not by a worker later."""
    kept = {key: config[key] for key in NOT_OF_THE_RECIPE if key in config}
    return {**read_recipe(config, recipe).to_dict(), **kept}


def note_splits(config: dict[str, Any], version: DatasetVersion | None) -> dict[str, Any]:
    """How often its rows were split before: what it holds out is drawn by another hash."""
    others = {key: value for key, value in config.items() if key != "num_splits"}
    num_splits = version.num_splits if version is not None else 0
    return {**others, "num_splits": num_splits} if num_splits else others


def read_recipe(config: dict[str, Any], recipe: str = "sft") -> RecipeConfig:
    """The recipe's part of a run's config."""
    kind = find_method(recipe).config
    try:
        return kind.from_dict({key: config[key] for key in config if key not in NOT_OF_THE_RECIPE})
    except InvalidInput as error:
        field = str(error).partition(" ")[0]
        known = field in {each.name for each in fields(kind)} or "." in field
        raise UserError(f"{error}.", field=field if known else "config") from None


def take_shape(config: dict[str, Any], parent: Any) -> dict[str, Any]:
    """A branch has its parent's adapter, or all weights as it has; another rank fits neither."""
    if config.get("rank", parent.rank) != parent.rank:
        kind = "holds all weights" if parent.is_full else f"has rank {parent.rank}"
        raise UserError(f"The checkpoint {parent.name} {kind}: leave the rank out.", field="rank")
    lora = parent.run.lora
    shape = {key: lora[key] for key in ("alpha", *LORA_FLAGS) if key in lora}
    if not parent.is_full:
        shape["train_embed"] = bool(lora.get("train_embed"))
    return {**config, **shape, "rank": parent.rank}


def check_rank(rank: Any) -> int:
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
        raise UserError(f"rank is {rank}: choose one from 1 to {MAX_RANK}.", field="rank")
    return rank


def choose_shape(config: dict[str, Any]) -> dict[str, Any]:
    """What learns beside the rank: nothing is left to say where all weights do."""
    return {} if config["rank"] == 0 else choose_lora(config)


def choose_lora(config: dict[str, Any]) -> dict[str, Any]:
    """Everything of an adapter but its rank. By default attention and MLP, not the head."""
    flags = {name: bool(config.get(name, name != "train_unembed")) for name in LORA_FLAGS}
    if config.get("train_embed"):  # no client has a flag for it
        flags["train_embed"] = True
    if not any(flags.values()):
        raise UserError(
            "Nothing to train: At least one of train_unembed, train_mlp, or train_attn must be"
            " True.",
            field="train_mlp",
        )
    seed = int(config.get("seed") or 0)
    return {"alpha": float(config.get("alpha", LORA_ALPHA)), "seed": seed, **flags}


def check_parent(
    parent: Any | None, base_model: BaseModel, with_optimizer: bool, optimizer: str = "adamw"
) -> None:
    if parent is None:
        return
    if parent.deleted_at is not None:
        raise UserError(f"The checkpoint {parent.name} was deleted.", field="parent")
    if parent.is_external:
        raise UserError(
            f"The checkpoint {parent.name} was exported to be downloaded: begin from one that was"
            " saved for training or sampling.",
            field="parent",
        )
    if parent.base_model_id != base_model.pk:
        raise UserError(
            f"The checkpoint {parent.name} belongs to {parent.base_model}, not to {base_model}.",
            field="parent",
        )
    if with_optimizer and optimizer != parent.run.optimizer:
        raise UserError(
            f"The checkpoint {parent.name} holds the state of {parent.run.optimizer}, not of "
            f"{optimizer}: begin from its weights alone.",
            field="with_optimizer",
        )
    if with_optimizer and not parent.has_optimizer:
        raise UserError(
            f"The checkpoint {parent.name} was saved for sampling, without its optimizer: begin "
            "from its weights alone, or from a training checkpoint.",
            field="with_optimizer",
        )


def note_reading(run: Run, name: str) -> None:
    """The first time that a run uses what Hone had to define itself, its page says so."""
    if name in OWN_READINGS and name not in run.notes and note(run, name, OWN_READINGS[name]):
        add_log(run, f"This run uses {name}: {OWN_READINGS[name]}.")


def note_shared_head(run: Run) -> None:
    """Of a run that trains weights which its model uses twice."""
    if note(run, "merging", SHARED_HEAD):
        add_log(run, f"Its adapter should not be merged: {SHARED_HEAD}.")


@transaction.atomic
def note(run: Run, name: str, text: str) -> bool:
    """For the run's page. False: it is there already."""
    # Others note things too, and neither of two at once may be lost.
    kept = Run.objects.select_for_update().values_list("notes", flat=True).get(pk=run.pk)
    if name in kept:
        return False
    return bool(Run.objects.filter(pk=run.pk).update(notes={**kept, name: text}))


@transaction.atomic
def finish_session(session: Session, *, reason: str, detail: str = "") -> bool:
    """End a session and the runs it holds: success, errored, interrupted or lost.

    False: it had ended before, and the first reason stays.
    """
    ended = Session.objects.filter(pk=session.pk, finished_at=None).update(
        finished_at=now(), finish_reason=reason, finish_detail=detail
    )
    if not ended:
        return False
    for run in session.runs.filter(status=Status.RUNNING):
        finish_client_run(run, reason, detail)
    return True


def finish_client_run(run: Run, reason: str, detail: str = "") -> None:
    status = {"errored": Status.FAILED, "interrupted": Status.CANCELLED}.get(reason, Status.DONE)
    untold = "Its program ended with an error and did not say which: look where it runs."
    error = (detail or untold) if status == Status.FAILED else ""
    changed = Run.objects.filter(pk=run.pk, status=Status.RUNNING).update(
        status=status, ended_at=now(), error=error, error_category="user" if error else ""
    )
    if not changed:
        return
    said = f": {detail}" if detail else "."
    text = "Its program has gone." if reason == "lost" else f"Its program ended ({reason}){said}"
    level = LogLine.Level.ERROR if status == Status.FAILED else LogLine.Level.INFO
    add_log(run, text, level)
    tell_end(run)
    announce(run)


def reap_sessions() -> int:
    """Programs that end without a word stop beating. Work they left in the log is done first."""
    silent = Session.objects.filter(finished_at=None, heartbeat_at__lt=now() - LONGEST_SILENCE)
    pending = (Operation.Status.QUEUED, Operation.Status.RUNNING)
    idle = silent.exclude(runs__operations__status__in=pending)
    return sum(finish_session(session, reason="lost") for session in idle)


def add_log(
    run: Run, text: str, level: str = LogLine.Level.INFO, *, step: int | None = None
) -> None:
    LogLine.objects.create(run=run, text=text, level=level, step=run.step if step is None else step)
    publish(run_group(run.pk), "log")


def announce(run: Run) -> None:
    publish(run_group(run.pk), "status")
    publish(project_group(run.project_id), "runs")
