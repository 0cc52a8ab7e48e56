"""A run's life as people and programs steer it."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils.timezone import now

from tests.webapp.cast import make_actor, make_base_model, make_run
from webapp.accounts.models import Actor
from webapp.core.errors import UserError
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.fleet.models import BaseModel
from webapp.runs import driving, services, steering
from webapp.runs.clients import open_client_run
from webapp.runs.models import LogLine, Operation, Run, Session

pytestmark = pytest.mark.django_db

Status = Run.Status


@pytest.fixture
def actor() -> Actor:
    return make_actor()


@pytest.fixture
def base_model() -> BaseModel:
    return make_base_model()


@pytest.fixture
def version(actor: Actor) -> DatasetVersion:
    return DatasetVersion.objects.create(
        project=actor.project,
        dataset=Dataset.objects.create(project=actor.project, name="words"),
        number=1,
        status=DatasetVersion.Status.READY,
        filename="words.jsonl",
        format="jsonl",
        num_rows=10,
        size_bytes=4400,
    )


def create(actor: Actor, version: DatasetVersion, model: BaseModel, **changes: Any) -> Run:
    return services.create_run(
        **{
            "actor": actor,
            "origin": "rest",
            "name": "words",
            "base_model": model,
            "dataset_version": version,
            "config": {"rank": 8, "steps": 4},
            **changes,
        }
    )


@pytest.fixture
def run(actor: Actor, version: DatasetVersion, base_model: BaseModel) -> Run:
    return create(actor, version, base_model)


def start(run: Run, driver: str = "d1") -> Run:
    assert driving.take_driver(run.pk, driver=driver)
    return Run.objects.get(pk=run.pk)


def test_a_run_is_queued_with_what_its_adapter_will_be(run: Run) -> None:
    assert (run.status, run.rank, run.recipe) == (Status.QUEUED, 8, "sft")
    assert run.lora == {
        "alpha": 32.0,
        "seed": 0,
        "train_mlp": True,
        "train_attn": True,
        "train_unembed": False,
    }
    assert LogLine.objects.get(run=run).text == "Queued: sft on words v1, from tiny-chatml-1m."


def test_a_run_may_train_the_input_embedding_alone(
    actor: Actor, version: DatasetVersion, base_model: BaseModel
) -> None:
    parts = {"train_mlp": False, "train_attn": False, "train_embed": True}
    run = create(actor, version, base_model, config={"rank": 8, "steps": 4, **parts})
    assert run.lora == {"alpha": 32.0, "seed": 0, "train_unembed": False, **parts}
    assert services.read_recipe(run.config).lora.train_embed


@pytest.mark.parametrize("rank", [-1, 10_000, True, "8", 1.5])
def test_a_rank_out_of_range_is_refused(
    actor: Actor, version: DatasetVersion, base_model: BaseModel, rank: Any
) -> None:
    with pytest.raises(UserError, match="whole number from 0 to 512") as refusal:
        create(actor, version, base_model, config={"rank": rank})
    assert refusal.value.field == "rank"


def test_a_run_of_rank_0_trains_all_weights_and_has_no_adapter(
    actor: Actor, version: DatasetVersion, base_model: BaseModel
) -> None:
    run = create(actor, version, base_model, config={"rank": 0, "steps": 4})
    assert (run.rank, run.is_full, run.lora) == (0, True, {})
    assert run.config["learning_rate"] == 1e-5
    assert not {"alpha", "train_mlp", "train_attn", "train_unembed"} & run.config.keys()
    said = "Queued: sft on words v1, from tiny-chatml-1m, all weights."
    assert LogLine.objects.get(run=run).text == said


def test_a_run_that_would_train_nothing_is_refused(
    actor: Actor, version: DatasetVersion, base_model: BaseModel
) -> None:
    with pytest.raises(UserError, match="nothing learns"):
        create(actor, version, base_model, config={"train_mlp": False, "train_attn": False})


def test_a_version_that_is_not_ready_is_refused(
    actor: Actor, version: DatasetVersion, base_model: BaseModel
) -> None:
    version.status = DatasetVersion.Status.VALIDATING
    with pytest.raises(UserError, match="words v1 is not ready yet"):
        create(actor, version, base_model)


def test_one_task_drives_a_run_at_a_time(run: Run) -> None:
    start(run)
    assert not driving.take_driver(run.pk, driver="d2")
    Run.objects.filter(pk=run.pk).update(driver_until=now() - timedelta(seconds=1))
    assert driving.take_driver(run.pk, driver="d2")


def test_a_run_that_is_over_or_paused_is_not_driven(run: Run) -> None:
    for status in (Status.DONE, Status.FAILED, Status.CANCELLED, Status.PAUSED):
        Run.objects.filter(pk=run.pk).update(status=status)
        assert not driving.take_driver(run.pk, driver="d1")


def test_a_driver_that_was_replaced_can_record_and_end_nothing(run: Run) -> None:
    first = start(run)
    Run.objects.filter(pk=run.pk).update(driver="d2")
    with pytest.raises(driving.DriverLost):
        driving.record_step(first, 1, {"loss": 1.0})
    assert not driving.finish_run(first, Status.DONE)
    assert not run.metrics.exists()


def test_a_queued_run_pauses_at_once_and_a_running_one_between_steps(
    actor: Actor, version: DatasetVersion, base_model: BaseModel, run: Run
) -> None:
    steering.request_pause(actor=actor, run=run)
    run.refresh_from_db()
    assert run.status == Status.PAUSED
    steering.resume_run(actor=actor, run=run)
    driven = start(run)
    steering.request_pause(actor=actor, run=driven)
    with pytest.raises(driving.Paused):
        driving.record_step(driven, 1, {"loss": 1.0})
    assert run.metrics.count() == 1


def test_only_a_paused_run_can_be_resumed(actor: Actor, run: Run) -> None:
    with pytest.raises(UserError, match="Only a paused run"):
        steering.resume_run(actor=actor, run=run)


def test_stop_ends_a_run_that_has_not_begun_and_asks_one_that_has(actor: Actor, run: Run) -> None:
    driven = start(run)
    steering.request_stop(actor=actor, run=driven)
    with pytest.raises(driving.Cancelled):
        driving.check_stop(driven)
    run.refresh_from_db()
    assert (run.status, run.wish) == (Status.RUNNING, "stop")


def test_stop_ends_a_queued_run_at_once(actor: Actor, run: Run) -> None:
    steering.request_stop(actor=actor, run=run)
    run.refresh_from_db()
    assert (run.status, run.ended_at is None) == (Status.CANCELLED, False)


def test_a_paused_run_with_weights_saves_them_before_it_stops(actor: Actor, run: Run) -> None:
    Run.objects.filter(pk=run.pk).update(status=Status.PAUSED, step=3)
    steering.request_stop(actor=actor, run=run)
    run.refresh_from_db()
    assert (run.status, run.wish) == (Status.QUEUED, "stop")


def test_a_clients_run_is_stopped_at_once_and_its_program_is_told(actor: Actor) -> None:
    run = make_run(actor)
    operation = Operation.objects.create(run=run, seq=0, kind="create_model", digest="")
    steering.request_stop(actor=actor, run=run)
    run.refresh_from_db()
    operation.refresh_from_db()
    assert run.status == Status.CANCELLED
    assert (operation.status, operation.error_category) == (Operation.Status.FAILED, "user")
    assert "stopped" in operation.error


def test_a_strangers_wishes_change_nothing(run: Run) -> None:
    stranger = make_actor("carol")
    steering.request_stop(actor=stranger, run=run)
    steering.request_pause(actor=stranger, run=run)
    run.refresh_from_db()
    assert (run.status, run.wish) == (Status.QUEUED, "")


def test_a_clients_own_loop_cannot_be_steered(actor: Actor) -> None:
    run = make_run(actor)
    for wish in (steering.request_pause, steering.request_save, steering.request_evaluation):
        with pytest.raises(UserError, match="own program decides"):
            wish(actor=actor, run=run)


@pytest.mark.parametrize("rate", [0, -1, 2, float("nan")])
def test_a_learning_rate_out_of_range_is_refused(actor: Actor, run: Run, rate: float) -> None:
    with pytest.raises(UserError, match="learning rate"):
        steering.change_learning_rate(actor=actor, run=run, learning_rate=rate)


def test_a_wish_belongs_to_the_step_that_took_it(actor: Actor, run: Run) -> None:
    steering.request_save(actor=actor, run=run)
    steering.change_learning_rate(actor=actor, run=run, learning_rate=0.5)
    replayed = driving.take_orders(run, 1, is_replay=True)
    assert (replayed.save, replayed.learning_rate) == (False, 0.5)
    assert driving.take_orders(run, 3, is_replay=False).save
    assert not driving.take_orders(run, 4, is_replay=False).save
    assert driving.take_orders(run, 3, is_replay=True).save


def test_runs_without_a_driver_are_announced_once_in_a_while(run: Run) -> None:
    assert driving.announce_driverless() == 1
    assert driving.announce_driverless() == 0
    start(run)
    assert driving.announce_driverless() == 0
    Run.objects.filter(pk=run.pk).update(driver_until=now() - timedelta(seconds=1))
    assert driving.announce_driverless() == 1


def open_session(actor: Actor) -> Session:
    return Session.objects.create(project=actor.project, user=actor.user)


def test_the_same_model_seq_id_opens_the_same_run(actor: Actor, base_model: BaseModel) -> None:
    session = open_session(actor)
    first, again = (
        open_client_run(
            actor=actor,
            session=session,
            model_seq_id=0,
            base_model=base_model,
            lora={"rank": 16, "seed": 5, "train_unembed": True},
            user_metadata={"name": "mine"},
        )
        for _ in range(2)
    )
    assert first == again
    assert (first.rank, first.lora["seed"], first.lora["train_unembed"]) == (16, 5, True)
    assert (first.status, first.name, first.recipe) == (Status.RUNNING, "mine", "")


def test_a_run_inherits_what_its_session_says_of_itself(
    actor: Actor, base_model: BaseModel
) -> None:
    session = open_session(actor)
    session.user_metadata = {"recipe_name": "recipe_sl_basic", "renderer_name": "qwen3"}
    run = open_client_run(
        actor=actor,
        session=session,
        model_seq_id=0,
        base_model=base_model,
        user_metadata={"renderer_name": "role_colon"},
    )
    assert run.config == {"recipe_name": "recipe_sl_basic", "renderer_name": "role_colon"}


def test_a_program_that_gives_no_name_has_its_recipes(actor: Actor, base_model: BaseModel) -> None:
    session = open_session(actor)
    session.display_name, session.user_metadata = "", {"recipe_name": "recipe_sl_basic"}
    of_recipe = open_client_run(actor=actor, session=session, model_seq_id=0, base_model=base_model)
    session.user_metadata = {}
    of_nothing = open_client_run(
        actor=actor, session=session, model_seq_id=1, base_model=base_model
    )
    assert (of_recipe.name, of_nothing.name) == ("sl_basic", "SDK run 2")


def test_a_long_name_keeps_what_tells_two_models_of_a_session_apart(
    actor: Actor, base_model: BaseModel
) -> None:
    session = open_session(actor)
    run = open_client_run(
        actor=actor,
        session=session,
        model_seq_id=1,
        base_model=base_model,
        user_metadata={"name": "x" * 200},
    )
    assert run.name == "x" * 118 + " 2"


def test_an_ended_session_opens_nothing(actor: Actor, base_model: BaseModel) -> None:
    session = open_session(actor)
    services.finish_session(session, reason="success")
    session.refresh_from_db()
    with pytest.raises(UserError, match="session has ended"):
        open_client_run(actor=actor, session=session, model_seq_id=0, base_model=base_model)


@pytest.mark.parametrize(
    ("reason", "status"),
    [("success", "done"), ("errored", "failed"), ("interrupted", "cancelled"), ("lost", "done")],
)
def test_a_session_ends_once_and_its_runs_with_it(actor: Actor, reason: str, status: str) -> None:
    run = make_run(actor)
    assert run.session is not None
    assert services.finish_session(run.session, reason=reason, detail="a sentence")
    assert not services.finish_session(run.session, reason="success")
    run.refresh_from_db()
    assert run.status == status
    assert run.error == ("a sentence" if reason == "errored" else "")


def test_a_failure_that_nobody_explained_says_so(actor: Actor) -> None:
    run = make_run(actor)
    assert run.session is not None
    services.finish_session(run.session, reason="errored")
    run.refresh_from_db()
    assert "did not say which" in run.error


def test_a_silent_session_is_reaped_when_nothing_of_it_waits(actor: Actor) -> None:
    run = make_run(actor)
    long_ago = now() - timedelta(minutes=11)
    Session.objects.update(heartbeat_at=long_ago)
    operation = Operation.objects.create(run=run, seq=0, kind="create_model", digest="")
    assert services.reap_sessions() == 0
    Operation.objects.filter(pk=operation.pk).update(status="done")
    assert services.reap_sessions() == 1
    run.refresh_from_db()
    assert run.status == Status.DONE
