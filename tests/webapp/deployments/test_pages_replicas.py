"""Sampling servers and traffic: scaled, told which engine answers, and what it draws."""

from datetime import timedelta

import pytest
from django.test import Client
from django.utils.timezone import now
from pytest_django import Settings

from tests.webapp.cast import count_queries, sign_in
from tests.webapp.deployments.conftest import (
    make_call,
    make_checkpoint,
    make_deployment,
    make_load,
    make_replica,
    read,
)
from webapp.accounts.models import Actor
from webapp.deployments import traffic
from webapp.deployments.models import Deployment, Replica, SamplingCall
from webapp.runs.models import Run

STATS = {
    "running": 3,
    "waiting": 2,
    "kv_cache_share": 0.125,
    "ttft_p50": 0.041,
    "tpot_p50": 0.007,
    "sampled_tokens": 1000,
}


def test_a_deployment_is_scaled_and_zero_is_said_in_words(
    browser: Client, deployment: Deployment
) -> None:
    url = f"/deployments/{deployment.pk}/"
    make_replica()
    assert browser.post(f"{url}scale/", {"num_replicas": "3"}).status_code == 302
    assert "1 of 3 replicas are ready and answer everything meanwhile." in read(browser, url)
    browser.post(f"{url}scale/", {"num_replicas": "0"})
    assert "no server runs on its account" in read(browser, url)
    Replica.objects.update(deployment=deployment)
    assert "it sleeps again once nobody has asked for a while" in read(browser, url)
    Replica.objects.update(status="stopped", start="")
    page = read(browser, url)
    assert "asleep</span>" in page
    assert "The next question wakes one" in page
    Replica.objects.update(status="starting", start="a2")
    page = read(browser, url)
    assert "waiting for a server</span>" in page
    assert "The next question wakes one" not in page
    refused = browser.post(f"{url}scale/", {"num_replicas": "99"})
    assert refused.status_code == 400
    assert "between 0 and 16 replicas, not 99." in refused.content.decode()


def test_each_replica_tells_its_engine_and_how_it_is(
    browser: Client, deployment: Deployment
) -> None:
    replica = make_replica(stats=STATS)
    assert deployment.checkpoint is not None
    make_load(deployment.checkpoint, deployment=deployment, replica=replica)
    make_replica("vllm-tiny-2", status="lost", error="The process was ended by signal 9.")
    page = read(browser, f"/deployments/{deployment.pk}/")
    for said in ("vLLM 0.32.0", "3 + 2", "41 ms", "7 ms", "12.5 %", "1 checkpoint"):
        assert said in page
    assert "lost, starts again" in page
    assert "The process was ended by signal 9." in page


def test_a_replica_that_holds_another_deployments_weights_is_not_shown(
    alice: Actor, browser: Client, run: Run, deployment: Deployment
) -> None:
    other = make_deployment(alice, make_checkpoint(run, name="whole"), "other")
    make_replica("vllm-other", deployment=other)
    make_replica("vllm-tiny")
    page = read(browser, f"/deployments/{deployment.pk}/")
    assert "vllm-tiny" in page
    assert "vllm-other" not in page
    assert "vllm-tiny" not in read(browser, f"/deployments/{other.pk}/")


def test_a_proof_tells_what_took_how_long(browser: Client, deployment: Deployment) -> None:
    assert deployment.checkpoint is not None
    make_load(
        deployment.checkpoint,
        deployment=deployment,
        mean_difference=4e-7,
        export_milliseconds=9.0,
        transfer_milliseconds=3.0,
        pause_milliseconds=0.0,
    )
    words = " ".join(read(browser, f"/deployments/{deployment.pk}/").split())
    assert "to 2e-6 nats, 4e-7 on average; 1e-3 is allowed." in words
    for phase in ("export <strong>9 ms", "transfer <strong>3 ms", "probe <strong>"):
        assert phase in words
    assert "pause for others <strong>0 ms" in words


def test_traffic_is_what_the_deployments_calls_drew_and_a_gap_is_seen(
    alice: Actor, browser: Client, deployment: Deployment
) -> None:
    for seconds in (300, 30):
        ended = now() - timedelta(seconds=seconds)
        make_call(alice, deployment, finished_at=ended, status="done", num_sampled_tokens=100)
    make_call(alice, deployment)
    shown = browser.get(f"/deployments/{deployment.pk}/").context["traffic"]
    drawn = [bar.place for bar in shown.bars if bar.rate > 0]
    early, late = range(55, 61), range(108, 115)
    assert {drawn[0] in early, drawn[-1] in late} == {True}
    assert all(place in early or place in late for place in drawn)
    assert sum(bar.rate for bar in shown.bars) * 5 == pytest.approx(200)
    assert (shown.num_waiting, shown.num_running, shown.num_calls) == (1, 0, 2)
    assert shown.lately == pytest.approx(100 / 60)
    assert (round(shown.first_token), round(shown.each_token)) == (500, 5)


def test_traffic_of_very_many_calls_is_added_up_where_they_lie(
    alice: Actor, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "MOST_CALLS", 2)
    for seconds in (300, 30, 30):
        ended = now() - timedelta(seconds=seconds)
        make_call(alice, deployment, finished_at=ended, status="done", num_sampled_tokens=100)
    read = traffic.read_traffic(SamplingCall.objects.all())
    assert sum(bar.rate for bar in read.bars) * 5 == pytest.approx(300)
    assert read.lately == pytest.approx(200 / 60)


def test_the_chart_is_saved_as_a_table(
    alice: Actor, browser: Client, deployment: Deployment
) -> None:
    make_call(alice, deployment, finished_at=now(), status="done", num_sampled_tokens=10)
    for url in (f"/deployments/{deployment.pk}/traffic.csv", "/settings/serving/traffic.csv"):
        rows = browser.get(url).content.decode().splitlines()
        assert rows[0] == "begin,tokens_per_second"
        assert len(rows) == 121
        assert sum(float(row.split(",")[1]) for row in rows[1:]) == pytest.approx(2)


def test_the_servers_page_says_which_engine_answers(browser: Client) -> None:
    assert "No sampling server is ready" in read(browser, "/settings/serving/")
    make_replica()
    make_replica("vllm-tiny-2")
    page = read(browser, "/settings/serving/")
    assert "Answers come from vLLM 0.32.0 on 2 replicas." in page
    assert "vllm-tiny-2" in page
    assert "Answers come from vLLM 0.32.0 on 2 replicas." in read(browser, "/deployments/")


def test_a_vllm_that_nobody_wants_yet_is_not_called_late(
    browser: Client, settings: Settings
) -> None:
    assert "They start with the rest" in read(browser, "/settings/serving/")
    settings.SERVING = "vllm"
    page = read(browser, "/settings/serving/")
    assert "the next question or deployment starts vLLM" in page
    assert "make run" not in page
    replica = make_replica(status="starting")
    page = read(browser, "/settings/serving/")
    assert "No sampling server is ready" in page
    assert "the next question" not in page
    Replica.objects.filter(pk=replica.pk).update(status="stopped")
    assert "the next question or deployment starts vLLM" in read(browser, "/settings/serving/")


def test_the_servers_page_takes_the_same_queries_for_one_server_and_for_five(
    browser: Client,
) -> None:
    make_replica()
    once = count_queries(browser, "/settings/serving/")
    for number in range(4):
        make_replica(f"r{number}")
    assert count_queries(browser, "/settings/serving/") == once


def test_a_server_that_holds_another_projects_deployment_is_not_listed(
    alice: Actor, charlie: Actor, browser: Client, deployment: Deployment
) -> None:
    make_replica("vllm-own", deployment=deployment)
    make_replica("vllm-shared")
    assert "vllm-own" in read(browser, "/settings/serving/")
    page = read(sign_in(charlie), "/settings/serving/")
    assert "vllm-shared" in page
    assert "vllm-own" not in page
