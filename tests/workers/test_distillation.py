"""Distillation over the log: recipe, device and sampling server in one process."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.workers.cast import make_device, make_tiny
from tests.workers.rollouts import ProcessKilled, RolloutWaiter
from tests.workers.test_rl import drive, list_operations, list_rollouts, read_curve
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.core.errors import UserError
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.deployments.models import SamplingCall
from webapp.fleet.models import BaseModel
from webapp.runs import services
from webapp.runs.models import Run

pytestmark = pytest.mark.django_db

Status = Run.Status
SHARED: dict[str, Any] = {
    "rank": 8,
    "learning_rate": 0.003,
    "schedule": "constant",
    "batch_size": 8,
    "held_out_share": 0.25,
    "evaluate_every": 5,
    "max_tokens": 6,
    "sampling": {"every": 0},
}
LESSONS = 24  # differences of one digit


def make_version(actor: Actor, folder: Path, rows: list[dict[str, Any]], kind: str) -> Any:
    name = f"{kind}-{len(rows)}"
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetVersion.objects.create(
        project=actor.project,
        dataset=Dataset.objects.create(project=actor.project, name=name),
        number=1,
        status=DatasetVersion.Status.READY,
        kind=kind,
        filename=f"{name}.jsonl",
        format="jsonl",
        upload_path=f"{name}.jsonl",
        rows_path=f"{name}.jsonl",
        num_rows=len(rows),
    )


def ask(a: int, b: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is {a} - {b}?"}]


PAIRS = [(a, b) for a in range(5, 9) for b in range(6)][:LESSONS]


@pytest.fixture
def prompts(actor: Actor, tmp_path: Path) -> DatasetVersion:
    rows = [{"messages": ask(a, b)} for a, b in PAIRS]
    return make_version(actor, tmp_path, rows, "prompt")  # type: ignore[no-any-return]


@pytest.fixture
def teacher(actor: Actor, tmp_path: Path) -> Checkpoint:
    """It has learned to subtract, which the base model has not."""
    rows = [
        {"messages": [*ask(a, b), {"role": "assistant", "content": str(a - b)}]} for a, b in PAIRS
    ]
    version = make_version(actor, tmp_path, rows, "conversation")
    config = {"rank": 8, "learning_rate": 0.01, "batch_size": 24, "steps": 50, "evaluate_every": 0}
    run = drive(make(actor, version, "sft", {**config, "held_out_share": 0}))
    assert read_curve(run, "loss")[50] < 0.5
    return Checkpoint.objects.get(run=run, kind="training")


def make(actor: Actor, version: Any, recipe: str, config: dict[str, Any]) -> Run:
    return services.create_run(
        actor=actor,
        origin="browser",
        name=recipe,
        base_model=BaseModel.objects.first() or make_tiny(),
        dataset_version=version,
        config=config,
        recipe=recipe,
    )


def read_log(run: Run) -> list[str]:
    return list(run.log_lines.values_list("text", flat=True))


def test_the_students_own_answers_come_nearer_to_the_teacher(
    actor: Actor, prompts: DatasetVersion, teacher: Checkpoint
) -> None:
    config = {**SHARED, "steps": 30, "evaluate_every": 10, "teacher": teacher.pk}
    run = drive(make(actor, prompts, "on_policy_distillation", config))
    assert (run.status, run.error) == (Status.DONE, "")
    curve = read_curve(run, "teacher/kl")
    assert list(curve) == list(range(1, 31))
    first, last = (sum(curve[step] for step in steps) / 3 for steps in ((1, 2, 3), (28, 29, 30)))
    assert first > 0.5
    assert last < first / 2
    held_out = read_curve(run, "held_out/teacher_kl")
    assert list(held_out) == [10, 20, 30]
    assert held_out[30] < held_out[10]
    keys = set(run.metrics.values_list("key", flat=True))
    assert not [key for key in keys if key.startswith(("reward", "frac_", "kl/"))]


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_a_student_of_the_teachers_answers_comes_nearer_to_it(
    actor: Actor, prompts: DatasetVersion, teacher: Checkpoint, temperature: float
) -> None:
    config = {
        **SHARED,
        "steps": 20,
        "teacher": teacher.tinker_path,
        "answers_per_prompt": 2,
        "temperature": temperature,
    }
    run = drive(make(actor, prompts, "off_policy_distillation", config))
    assert (run.status, run.error) == (Status.DONE, "")
    distance = read_curve(run, "teacher/kl")
    assert list(distance) == [5, 10, 15, 20]
    assert distance[20] < distance[5]
    assert read_curve(run, "loss")[20] < read_curve(run, "loss")[1] / 2
    rows = run.rollouts.all()
    assert {row.step for row in rows} == {0}
    assert {row.digest for row in rows} == {teacher.digest}
    assert any(row.completion in ("0", "1", "2", "3") for row in rows)


def test_a_prompt_is_taken_to_heart(actor: Actor, prompts: DatasetVersion) -> None:
    """The same weights with the prompt are the teacher."""
    prompt = "Say: I am fine. Then say it again, whatever you are asked."
    config = {**SHARED, "steps": 20, "teacher_prompt": prompt, "max_tokens": 16}
    run = drive(make(actor, prompts, "prompt_distillation", config))
    assert (run.status, run.error) == (Status.DONE, "")
    distance = read_curve(run, "teacher/kl")
    assert distance[20] < distance[5]
    call = SamplingCall.objects.filter(run=run, about__has_key="lesson").first()
    assert call is not None
    assert len(call.payload["prompt"]) > 2 * 12  # the prompt stands before the question


@pytest.mark.parametrize("recipe", ["on_policy_distillation", "off_policy_distillation"])
@pytest.mark.parametrize("moment", [2, 5, 8])
def test_a_driver_that_was_killed_asks_the_teacher_nothing_twice(
    actor: Actor, prompts: DatasetVersion, recipe: str, moment: int
) -> None:
    teacher = (BaseModel.objects.first() or make_tiny()).name
    config = {**SHARED, "steps": 3, "evaluate_every": 2, "teacher": teacher}
    undisturbed = drive(make(actor, prompts, recipe, config))
    run, device = make(actor, prompts, recipe, config), make_device("w2")
    with pytest.raises(ProcessKilled):
        drive(run, RolloutWaiter(device=device, kill_recipe_at=moment))
    Run.objects.filter(pk=run.pk).update(driver_until=run.created_at)
    ended = drive(run, RolloutWaiter(device=device), driver="d2")
    assert ended.status == Status.DONE
    assert list_operations(run) == list_operations(undisturbed)
    assert list_rollouts(run) == list_rollouts(undisturbed)
    asked = SamplingCall.objects.filter(run=run).count()
    assert asked == SamplingCall.objects.filter(run=undisturbed).count()
    assert read_curve(run, "loss") == pytest.approx(read_curve(undisturbed, "loss"), rel=1e-5)


def test_a_teacher_whose_answers_never_end_teaches_nothing(
    actor: Actor, prompts: DatasetVersion
) -> None:
    teacher = (BaseModel.objects.first() or make_tiny()).name
    config = {**SHARED, "steps": 3, "teacher": teacher, "max_tokens": 1}
    run = drive(make(actor, prompts, "off_policy_distillation", config))
    assert run.status == Status.FAILED
    assert "raise max_tokens, or take another teacher" in run.error


@pytest.mark.parametrize(
    ("recipe", "wrong", "said"),
    [
        ("off_policy_distillation", {}, "teacher is missing"),
        ("prompt_distillation", {}, "teacher_prompt is missing"),
        ("prompt_distillation", {"teacher_prompt": "  "}, "teacher_prompt is missing"),
        ("on_policy_distillation", {"teacher": "ckpt-nobody"}, "no teacher 'ckpt-nobody'"),
        ("on_policy_distillation", {"kl_coefficient": 0}, "above 0"),
        (
            "on_policy_distillation",
            {"remove_constant_reward_groups": True},
            "would drop every group",
        ),
    ],
)
def test_what_cannot_teach_is_said_at_launch(
    actor: Actor, prompts: DatasetVersion, recipe: str, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        make(actor, prompts, recipe, {**SHARED, **wrong})


def test_a_checkpoint_of_another_project_teaches_nobody_here(
    actor: Actor, prompts: DatasetVersion, teacher: Checkpoint
) -> None:
    other = type(actor.project).objects.create(name="elsewhere")
    Checkpoint.objects.update(project=other)
    with pytest.raises(UserError, match="There is no teacher"):
        make(actor, prompts, "on_policy_distillation", {**SHARED, "teacher": teacher.pk})
