"""Why somebody waits: no worker, a model on its way into memory, or only its turn."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils.timezone import now

from tests.webapp.cast import make_base_model
from webapp.fleet.capacity import NO_SAMPLER, NO_TRAINER, SERVER_STARTS, read_capacity
from webapp.fleet.models import Worker

pytestmark = pytest.mark.django_db


def be_alive(kind: str, **holds: Any) -> Worker:
    return Worker.objects.create(name=f"{kind}{Worker.objects.count()}", kind=kind, holds=holds)


def test_without_workers_nothing_trains_and_nothing_answers() -> None:
    capacity = read_capacity()
    assert capacity.training == NO_TRAINER
    assert capacity.explain_sampling("bm-1") == NO_SAMPLER


def test_a_worker_that_was_not_heard_for_a_minute_is_none() -> None:
    for kind in ("gpu", "sampler"):
        be_alive(kind, server="w/1")
    assert read_capacity().training == ""
    assert read_capacity().sampling == ""
    Worker.objects.update(heartbeat_at=now() - timedelta(minutes=2))
    assert read_capacity().training == NO_TRAINER
    assert read_capacity().sampling == NO_SAMPLER


def test_a_sampler_without_its_server_says_that_it_is_starting() -> None:
    be_alive("sampler", server=None)
    assert read_capacity().sampling == SERVER_STARTS
    be_alive("sampler", server="w/1")
    assert read_capacity().sampling == ""


def test_why_a_base_model_has_no_server_is_told_to_those_who_want_it() -> None:
    be_alive("sampler", server=None, waits={"base-1": "the sampling server vllm-1 is starting"})
    capacity = read_capacity()
    assert capacity.explain_sampling("base-1") == "the sampling server vllm-1 is starting"
    assert capacity.explain_sampling("base-2") == SERVER_STARTS


def test_a_model_on_its_way_into_memory_is_named_to_those_who_want_it() -> None:
    wanted, other = make_base_model("acme/Wanted"), make_base_model("acme/Other")
    be_alive("gpu", loading="acme/Wanted")
    be_alive("sampler", server="w/1", loading=["acme/Other"])
    capacity = read_capacity()
    assert capacity.explain_load(wanted.pk, "", "run-1") == "the worker gpu0 is loading acme/Wanted"
    assert capacity.explain_load(other.pk, "", "run-1") == ""
    assert capacity.explain_sampling(other.pk) == "loading acme/Other"
    assert capacity.explain_sampling(wanted.pk) == ""


def test_whose_worker_loads_another_model_or_restores_a_run_reads_that_too() -> None:
    wanted, other = make_base_model("acme/Wanted"), make_base_model("acme/Other")
    loader, restorer = be_alive("gpu", loading="acme/Other"), be_alive("gpu", restoring="run-2")
    capacity = read_capacity()
    told = capacity.explain_load(wanted.pk, loader.name, "run-1")
    assert told == f"the worker {loader.name} is loading acme/Other"
    assert capacity.explain_load(other.pk, restorer.name, "run-2") == (
        "its weights had left memory, and are being restored"
    )
    assert capacity.explain_load(other.pk, restorer.name, "run-1") == (
        f"the worker {restorer.name} is restoring another run's weights"
    )
    assert capacity.explain_load(wanted.pk, "unknown", "run-1") == ""
