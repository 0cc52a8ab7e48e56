"""Each diagnostic over real rows: what it reads, what it need not read again, when it ends."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from tests.webapp.cast import make_actor, make_run
from tests.webapp.deployments.conftest import make_checkpoint
from training.types import Datum, ForwardBackward, ForwardBackwardOutput
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint, Export
from webapp.checkpoints.services import keep_checkpoint
from webapp.core.dispatch import DIAGNOSE_RUN
from webapp.deployments.models import Deployment, HotLoad, SamplingCall
from webapp.evals.models import EvalSuite, Evaluation
from webapp.runs.diagnostics import DIAGNOSTICS
from webapp.runs.findings import list_entries, list_open
from webapp.runs.history import record_metrics
from webapp.runs.models import Operation, Run
from webapp.runs.records import Finding, Look, Rollout, RowLoss
from webapp.wire.passes import PROTOBUF, encode_forward_backward, encode_output
from workers import diagnose as diagnosing
from workers.diagnose import LOOKS, announce_due, diagnose

pytestmark = pytest.mark.django_db

NOT_FINITE = "the gradients are not finite: the step was refused, the weights are as before"


@pytest.fixture
def alice() -> Actor:
    return make_actor()


@pytest.fixture
def run(alice: Actor) -> Run:
    return make_run(alice)


def look_at(run: Run) -> dict[str, Finding]:
    """What is found now."""
    set_looked(5)
    diagnose(run.pk)
    return {each.diagnostic: each for each in list_open(run)}


def read_states(run: Run) -> dict[str, str]:
    return {entry.diagnostic.key: entry.state for entry in list_entries(run)}


def add_operation(run: Run, seq: int, kind: str, **columns: Any) -> Operation:
    moment = now()
    defaults = {"status": "done", "created_at": moment, "finished_at": moment}
    row = Operation(run=run, seq=seq, kind=kind, digest=f"d{seq}" * 8, **(defaults | columns))
    row.save(force_insert=True)
    return row


def add_pass(run: Run, seq: int, *losses: float) -> Operation:
    """One with a datum of two tokens for each loss, and its result."""
    data = [
        Datum(
            tokens=np.array([place, 7]),
            inputs={"target_tokens": np.array([7, 8]), "weights": np.ones(2, np.float32)},
        )
        for place in range(len(losses))
    ]
    output = ForwardBackwardOutput(
        logprobs=[np.full(2, -loss, np.float32) for loss in losses],
        metrics={"loss:sum": sum(losses)},
    )
    payload = encode_forward_backward(run.model_id, seq, ForwardBackward(data=data))
    columns = {"payload": payload, "result": encode_output(output), "content_type": PROTOBUF}
    return add_operation(run, seq, "forward_backward", **columns)


def test_every_diagnostic_has_a_look_and_a_new_run_has_no_finding(run: Run) -> None:
    assert list(LOOKS) == [each.key for each in DIAGNOSTICS]
    assert look_at(run) == {}
    assert set(read_states(run).values()) == {"not_applicable", "waiting"}
    assert "found" not in read_states(run).values()


def test_a_look_at_a_long_run_reads_no_more_than_at_a_short_one(run: Run) -> None:
    def fill(first: int, last: int) -> None:
        for seq in range(first, last):
            add_operation(run, seq, ("forward_backward", "optim_step")[seq % 2])
        for step in range(first, last):
            record_metrics(run, step, {"loss": 1.0, "held_out_loss": 1.0, "grad_norm": 1.0})
        Run.objects.filter(pk=run.pk).update(step=last, done_seq=last - 1)

    counts = []
    for first, last in ((0, 60), (60, 400)):
        fill(first, last)
        set_looked(5)
        with CaptureQueriesContext(connection) as captured:
            diagnose(run.pk)
        counts.append(len(captured))
    assert counts[1] <= counts[0]
    unbounded = [
        query["sql"]
        for query in captured
        if "runs_metric" in query["sql"]
        and not any(word in query["sql"] for word in ("LIMIT", "AVG(", "COUNT("))
    ]
    assert unbounded == []


def test_a_refused_step_is_found_with_its_batch_and_is_over_after_twenty(run: Run) -> None:
    add_pass(run, 0, 1.0)
    add_operation(run, 1, "optim_step")
    add_pass(run, 2, 0.5, 9.0)
    add_operation(run, 3, "optim_step", status="failed", error=NOT_FINITE)
    Run.objects.update(step=1, done_seq=3)
    found = look_at(run)["non_finite_or_spiking"]
    assert (found.step, found.level) == (2, "error")
    assert [(each["seq"], each["datum"]) for each in found.facts["batch"]] == [(2, 1), (2, 0)]
    assert found.facts["batch"][0]["loss"] == pytest.approx(9.0)
    for seq in range(4, 23):
        add_operation(run, seq, "optim_step")
    Run.objects.update(step=20, done_seq=22)
    assert look_at(run)["non_finite_or_spiking"].step == 2
    add_operation(run, 23, "optim_step")
    Run.objects.update(step=21, done_seq=23)
    assert "non_finite_or_spiking" not in look_at(run)
    assert run.annotations.count() == 1


def test_a_spike_names_the_datums_that_cost_most(run: Run) -> None:
    for step in range(1, 13):
        value = 9.0 if step == 12 else 1.0
        add_pass(run, 2 * step, value - 0.5, value + 0.5)
        add_operation(run, 2 * step + 1, "optim_step")
        record_metrics(run, step, {"loss": value, "grad_norm": 1.0})
    Run.objects.update(step=12, done_seq=25)
    found = look_at(run)["non_finite_or_spiking"]
    assert (found.step, found.facts["num_datums"]) == (12, 2)
    assert [each["datum"] for each in found.facts["batch"]] == [1, 0]
    assert "9 times the 1 of the steps before" in found.text.replace("9.0", "9")


def test_the_batch_of_a_recipe_is_its_rows_and_of_an_erased_log_its_sizes(run: Run) -> None:
    for step in range(1, 12):
        add_operation(run, 2 * step, "forward_backward", num_tokens=77)
        add_operation(run, 2 * step + 1, "optim_step")
        record_metrics(run, step, {"loss": 9.0 if step == 11 else 1.0})
    Run.objects.update(step=11, done_seq=23)
    (erased,) = look_at(run)["non_finite_or_spiking"].facts["batch"]
    assert (erased["seq"], erased["tokens"], erased["loss"]) == (22, 77, None)
    Finding.objects.all().delete()
    Look.objects.all().delete()
    for row, loss in ((4, 0.5), (8, 12.0)):
        RowLoss.objects.create(run=run, step=11, row=row, loss=loss)
    rows = look_at(run)["non_finite_or_spiking"].facts["batch"]
    assert [each["row"] for each in rows] == [8, 4]


def test_a_checkpoint_that_ends_soon_is_named_by_who_needs_it_and_kept(
    alice: Actor, run: Run
) -> None:
    soon = now() + timedelta(hours=3)
    checkpoint = make_checkpoint(run, expires_at=soon)
    assert look_at(run) == {}
    assert read_states(run)["checkpoint_will_expire"] == "clear"
    make_run(alice, run.base_model, model_seq_id=1)
    Run.objects.exclude(pk=run.pk).update(parent=checkpoint)
    assert "the parent of another run" in look_at(run)["checkpoint_will_expire"].text
    keep_checkpoint(actor=alice, checkpoint=checkpoint)
    assert look_at(run) == {}


@pytest.mark.parametrize("why", ["served", "held out", "score"])
def test_the_best_and_the_served_are_needed(alice: Actor, run: Run, why: str) -> None:
    checkpoint = make_checkpoint(run, expires_at=now() + timedelta(hours=3))
    other = make_checkpoint(run, name="worse", step=20, seq=40)
    if why == "served":
        Deployment.objects.create(
            project=alice.project, name="x", base_model=run.base_model, checkpoint=checkpoint
        )
    elif why == "held out":
        record_metrics(run, 10, {"held_out_loss": 1.0})
        record_metrics(run, 20, {"held_out_loss": 2.0})
    else:
        graders = [{"name": "exact"}]
        suite = EvalSuite.objects.create(project=alice.project, name="s", graders=graders)
        for each, score in ((checkpoint, 0.8), (other, 0.4)):
            Evaluation.objects.create(
                project=alice.project,
                suite=suite,
                base_model=run.base_model,
                checkpoint=each,
                status="done",
                scores={"exact": score},
            )
    found = look_at(run)["checkpoint_will_expire"]
    assert ("served" if why == "served" else "the run's best") in found.text
    assert [each["id"] for each in found.facts["checkpoints"]] == [checkpoint.pk]


def test_weights_for_samplers_alone_are_nobodys_loss(run: Run) -> None:
    make_checkpoint(run, expires_at=now() + timedelta(hours=3), is_ephemeral=True)
    record_metrics(run, 10, {"held_out_loss": 1.0})
    assert look_at(run) == {}


def test_memorising_names_the_checkpoint_to_branch_from(run: Run) -> None:
    make_checkpoint(run, name="step-2", step=2, seq=4, kind=Checkpoint.Kind.TRAINING)
    make_checkpoint(run, name="step-5", step=5, seq=10, kind=Checkpoint.Kind.TRAINING)
    for step, held_out in enumerate((1.0, 0.9, 1.0, 1.1, 1.2), start=1):
        record_metrics(run, step, {"loss": 1.0 / step, "held_out_loss": held_out})
    found = look_at(run)["memorising"]
    assert found.text.endswith("It was saved as step-2.")
    assert found.facts["checkpoints"][0]["name"] == "step-2"
    record_metrics(run, 6, {"loss": 0.1, "held_out_loss": 0.9})
    assert "memorising" not in look_at(run)


def test_a_clients_forward_passes_over_the_same_data_are_its_held_out_loss(run: Run) -> None:
    for step, held_out in enumerate((1.0, 1.1, 1.2, 1.3), start=1):
        record_metrics(run, step, {"loss": 1.0 / step, "forward_loss": held_out})
    assert look_at(run)["memorising"].text.endswith("No checkpoint of it was kept.")


def add_call(run: Run, checkpoint: Checkpoint, **columns: Any) -> SamplingCall:
    return SamplingCall.objects.create(
        **{
            "project": run.project,
            "purpose": "tinker",
            "base_model": run.base_model,
            "checkpoint": checkpoint,
            "payload": {},
            "digest": "d",
            "status": "done",
            "finished_at": now(),
            **columns,
        }
    )


def test_a_kept_sampler_is_found_and_a_new_one_ends_it(run: Run) -> None:
    begin = now() - timedelta(hours=1)
    saves = [
        make_checkpoint(run, name=f"s{k}", step=k, seq=k, created_at=begin + timedelta(minutes=k))
        for k in range(4)
    ]
    for minute in (2, 3):
        for second in (10, 20):
            moment = begin + timedelta(minutes=minute, seconds=second)
            add_call(run, saves[0], created_at=moment)
    assert look_at(run)["stale_sampler"].step == 2
    add_call(run, saves[3], created_at=begin + timedelta(minutes=4))
    assert "stale_sampler" not in look_at(run)


def test_evaluations_of_old_weights_are_no_stale_sampler(run: Run) -> None:
    begin = now() - timedelta(hours=1)
    saves = [
        make_checkpoint(run, name=f"s{k}", step=k, seq=k, created_at=begin + timedelta(minutes=k))
        for k in range(4)
    ]
    for minute in (2, 3):
        for _ in range(4):
            at = begin + timedelta(minutes=minute, seconds=5)
            add_call(run, saves[0], created_at=at, purpose="evaluation")
    assert look_at(run) == {}


def test_old_samples_are_found_by_the_weights_that_they_came_from(run: Run) -> None:
    add_call(run, make_checkpoint(run, step=0), finished_at=now() - timedelta(minutes=1))
    for step in range(1, 14):
        record_metrics(run, step, {"sampler/logprob_difference_mean": 0.001})
    assert "Samples are 10.5 optimizer steps old" in look_at(run)["off_policy"].text


def test_a_recipes_own_staleness_and_clipping_count(run: Run) -> None:
    for step in range(1, 6):
        record_metrics(run, step, {"staleness": 1.0, "clip/share": 0.4})
    assert "the ratio of 40% of tokens is clipped" in look_at(run)["off_policy"].text


def test_rollouts_that_show_it_are_linked(run: Run) -> None:
    Rollout.objects.bulk_create(
        Rollout(
            run=run,
            step=step,
            group=group,
            index=index,
            prompt=[],
            completion="yes it is so " * 12,
            reward=1.0,
        )
        for step in range(4)
        for group in range(4)
        for index in range(4)
    )
    found = look_at(run)["reward_hacking"]
    assert "repeat the same phrases" in found.text
    assert found.facts["answers"][0]["step"] == 3


def test_samples_that_disagree_say_so_until_they_agree(run: Run) -> None:
    record_metrics(run, 3, {"sampler/logprob_difference_mean": 0.034, "sampler/kl": 0.2})
    found = look_at(run)["sampler_trainer_disagree"]
    assert "by 0.034 nats a token (KL 0.2) at step 3" in found.text
    for step in (4, 5, 6):
        record_metrics(run, step, {"sampler/logprob_difference_mean": 0.002})
    assert look_at(run) == {}


def make_export(checkpoint: Checkpoint, status: str, difference: float | None) -> Export:
    return Export.objects.create(
        project=checkpoint.project,
        checkpoint=checkpoint,
        kind="peft",
        status=status,
        max_difference=difference,
        error="it was not kept." if status == "failed" else "",
        ended_at=now(),
    )


def test_an_export_that_differs_is_found_until_one_agrees(
    run: Run, tmp_path: Path, settings: Any
) -> None:
    settings.HONE_HOME = tmp_path
    checkpoint = make_checkpoint(run)
    make_export(checkpoint, "failed", None)  # of a full disk
    assert read_states_after(run)["export_differs"] == "not_applicable"
    make_export(checkpoint, "failed", 3.5)
    found = look_at(run)["export_differs"]
    assert "by up to 3.5 nats" in found.text
    assert "none" in found.text  # its folder cannot be read
    make_export(checkpoint, "ready", 0.001)
    assert look_at(run) == {}


def read_states_after(run: Run) -> dict[str, str]:
    set_looked(5)
    diagnose(run.pk)
    return read_states(run)


@pytest.mark.parametrize(
    ("columns", "is_found"),
    [
        ({"status": "failed", "max_difference": 2.0, "error": "differs"}, True),
        ({"status": "failed", "error": "x is damaged: the tensor w of x is not as it was"}, True),
        ({"status": "failed", "error": "The server has ended."}, False),
        ({"status": "lost", "max_difference": 2.0}, False),
        ({"status": "ready", "max_difference": 0.01}, False),
    ],
)
def test_a_served_copy_that_differs_is_found(
    run: Run, columns: dict[str, Any], is_found: bool
) -> None:
    HotLoad.objects.create(
        checkpoint=make_checkpoint(run), server="vllm#1", adapter_name="a", **columns
    )
    assert ("export_differs" in look_at(run)) is is_found


def test_a_dead_process_leaves_a_look_that_the_next_one_takes(run: Run) -> None:
    record_metrics(run, 1, {"sampler/logprob_difference_mean": 0.5})
    diagnose(run.pk)
    Look.objects.update(states={}, memory={})  # as one that ended before it could keep them
    set_looked(5)
    diagnose(run.pk)
    assert run.findings.count() == run.annotations.count() == 1
    assert read_states(run)["sampler_trainer_disagree"] == "found"


def test_messages_that_waited_together_are_one_look(run: Run) -> None:
    diagnose(run.pk)
    record_metrics(run, 1, {"sampler/logprob_difference_mean": 0.5})
    diagnose(run.pk)
    assert list_open(run) == []
    assert look_at(run).keys() == {"sampler_trainer_disagree"}


def test_a_run_that_is_gone_is_nothing_to_look_at() -> None:
    diagnose("run-gone")
    assert not Look.objects.exists()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    run_ids: list[str] = []

    def send(name: str, run_id: str) -> None:
        assert name == DIAGNOSE_RUN
        run_ids.append(run_id)

    monkeypatch.setattr(diagnosing, "send_task", send)
    return run_ids


def set_looked(seconds_ago: float) -> None:
    Look.objects.update(looked_at=now() - timedelta(seconds=seconds_ago))


def test_a_run_is_sent_for_when_something_came_and_not_at_once_again(
    run: Run, sent: list[str]
) -> None:
    assert announce_due() == 1  # never looked at
    diagnose(run.pk)
    assert announce_due() == 0
    set_looked(9)
    assert announce_due() == 1  # its last request is newer than the look
    Run.objects.update(last_request_at=now() - timedelta(hours=1))
    set_looked(59)
    assert announce_due() == 0
    set_looked(61)
    assert announce_due() == 1  # it runs: samples may have come
    Run.objects.update(status="done", ended_at=now() - timedelta(hours=1))
    assert announce_due() == 0
    Run.objects.update(ended_at=now())
    assert announce_due() == 1
    assert set(sent) == {run.pk}


def test_a_run_that_is_over_is_sent_for_when_its_checkpoint_ends_or_is_exported(
    run: Run, sent: list[str]
) -> None:
    diagnose(run.pk)
    long_ago = now() - timedelta(days=3)
    Run.objects.update(status="done", ended_at=long_ago, last_request_at=long_ago)
    checkpoint = make_checkpoint(run, expires_at=now() + timedelta(hours=25))
    set_looked(61)
    assert announce_due() == 0
    Checkpoint.objects.update(expires_at=now() + timedelta(hours=23))
    assert announce_due() == 1
    Checkpoint.objects.update(expires_at=None)
    assert announce_due() == 0
    make_export(checkpoint, "failed", 3.5)
    assert announce_due() == 1
    assert sent == [run.pk, run.pk]


def test_one_run_that_cannot_be_diagnosed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    diagnosing.fail("run-1", "odd")
    assert "run-1 could not be diagnosed: odd" in caplog.text
