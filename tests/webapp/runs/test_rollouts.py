"""The Rollouts tab, its REST list, and what of rollouts is thinned."""

from typing import Any

import pytest
from django.test import Client

from tests.webapp.cast import count_queries, make_actor, make_run, sign_in
from webapp.accounts.models import Actor
from webapp.accounts.services import create_key
from webapp.runs import rollouts
from webapp.runs.models import Run
from webapp.runs.records import Rollout
from webapp.runs.rollout_pages import measure_share

pytestmark = pytest.mark.django_db


@pytest.fixture
def actor() -> Actor:
    return make_actor()


@pytest.fixture
def run(actor: Actor) -> Run:
    run = make_run(actor)
    Run.objects.filter(pk=run.pk).update(recipe="rl")
    return Run.objects.get(pk=run.pk)


def open_rest(actor: Actor) -> Client:
    _, secret = create_key(actor=actor, name="test")
    return Client(headers={"X-API-Key": secret})


def make_rollout(run: Run, step: int, group: int, index: int, **changes: Any) -> Rollout:
    columns: dict[str, Any] = {
        "row": group + 10,
        "prompt": [{"role": "user", "content": f"Question {group}?"}],
        "completion": f"answer {step}.{group}.{index}",
        "tokens": [{"text": "an", "id": 5, "logprob": -0.25}],
        "stop_reason": "stop",
        "reward": float(index),
        "rewards": {"exact_match": float(index)},
        "advantage": index - 0.5,
    }
    return Rollout(run=run, step=step, group=group, index=index, **(columns | changes))


def fill(run: Run, *, num_steps: int = 2, num_groups: int = 3) -> None:
    rows = [
        make_rollout(run, step, group, index)
        for step in range(1, num_steps + 1)
        for group in range(num_groups)
        for index in range(2)
    ]
    rollouts.record_rollouts(run, rows)


def read(client: Client, run: Run, query: str = "") -> str:
    response = client.get(f"/runs/{run.pk}/?tab=rollouts{query}")
    assert response.status_code == 200
    return response.content.decode()


def test_the_newest_step_is_shown_group_by_group_the_best_answer_first(
    actor: Actor, run: Run
) -> None:
    fill(run)
    page = read(sign_in(actor), run)
    assert "Step 2" in page
    assert "Question 0?" in page
    assert "row 12" in page
    assert page.index("answer 2.0.1") < page.index("answer 2.0.0")
    assert "answer 1.0.0" not in page
    assert "+0.5000" in page
    assert 'data-step-key="ArrowLeft"' in page
    assert 'data-step-key="ArrowRight"' not in page


def test_a_step_is_part_of_the_address(actor: Actor, run: Run) -> None:
    fill(run)
    page = read(sign_in(actor), run, "&step=1")
    assert "answer 1.0.0" in page
    assert 'data-step-key="ArrowRight"' in page


def test_answers_are_searched_for_in_a_step_or_in_all(actor: Actor, run: Run) -> None:
    fill(run)
    client = sign_in(actor)
    assert "No answer matches." in read(client, run, "&q=answer 1.2")
    page = read(client, run, "&q=answer 1.2&steps=all")
    assert "2 answers match" in page
    assert page.count('class="found"') == 2
    assert "Question 2?" in page
    assert "Question 1?" not in page


@pytest.mark.parametrize(
    ("only", "found"),
    [
        ("above", ["a", "c"]),
        ("below", ["b"]),
        ("dropped", ["d"]),
        ("truncated", ["b"]),
        ("nonsense", ["a", "b", "c", "d"]),
    ],
)
def test_filters_find_answers_and_leave_them_beside_their_group(
    actor: Actor, run: Run, only: str, found: list[str]
) -> None:
    make = [
        make_rollout(run, 1, 0, 0, completion="a", advantage=1),
        make_rollout(run, 1, 0, 1, completion="b", advantage=-1, stop_reason="length"),
        make_rollout(run, 1, 1, 0, completion="c", advantage=0.5),
        make_rollout(run, 1, 2, 0, completion="d", advantage=0, is_dropped=True),
    ]
    rollouts.record_rollouts(run, make)
    response = open_rest(actor).get(f"/rest/runs/{run.pk}/rollouts?only={only}")
    assert sorted(row["completion"] for row in response.json()["results"]) == found
    assert "Group 1" in read(sign_in(actor), run, "&only=below")


def test_groups_come_page_by_page(actor: Actor, run: Run) -> None:
    fill(run, num_steps=1, num_groups=8)
    client = sign_in(actor)
    page = read(client, run)
    assert "1 to 6 of 8 groups" in page
    assert "Question 6?" not in page
    assert "Question 6?" in read(client, run, "&page=2")


def test_a_link_to_one_group_leads_to_its_page(actor: Actor, run: Run) -> None:
    fill(run, num_steps=1, num_groups=8)
    client = sign_in(actor)
    assert "Question 7?" in read(client, run, "&step=1&group=7")
    assert "Question 7?" not in read(client, run, "&step=1&group=7&page=1")
    assert "Question 0?" in read(client, run, "&step=1&group=99")


def test_the_number_of_queries_does_not_grow_with_the_groups(actor: Actor, run: Run) -> None:
    fill(run, num_steps=1, num_groups=2)
    client = sign_in(actor)
    address = f"/runs/{run.pk}/?tab=rollouts"
    count_queries(client, address)
    few = count_queries(client, address)
    rollouts.record_rollouts(run, [make_rollout(run, 1, group, 0) for group in range(2, 6)])
    assert count_queries(client, address) == few


def test_an_answer_is_shown_token_by_token_with_what_it_was_worth(actor: Actor, run: Run) -> None:
    fill(run)
    rollout = Rollout.objects.first()
    assert rollout is not None
    address = f"/runs/{run.pk}/rollouts/{rollout.pk}/"
    page = sign_in(actor).get(address).content.decode()
    assert 'title="-0.2500 nats, advantage -0.5000, id 5"' in page
    assert sign_in(make_actor("mallory")).get(address).status_code == 404


def test_a_run_without_rollouts_says_when_they_come(actor: Actor, run: Run) -> None:
    assert "No rollouts yet" in read(sign_in(actor), run)


@pytest.mark.parametrize("query", ["step=x", "step=-1", "step=99999999999999999999", "page=x"])
def test_odd_addresses_are_answered(actor: Actor, run: Run, query: str) -> None:
    fill(run)
    for address in (
        f"/runs/{run.pk}/?tab=rollouts&{query}",
        f"/rest/runs/{run.pk}/rollouts?{query}",
    ):
        assert sign_in(actor).get(address).status_code < 500


def test_rest_lists_the_newest_step_first_and_page_by_page(actor: Actor, run: Run) -> None:
    fill(run)
    client = open_rest(actor)
    first = client.get(f"/rest/runs/{run.pk}/rollouts?page_size=5").json()
    assert [(row["step"], row["group"], row["index"]) for row in first["results"]] == [
        (2, 0, 0), (2, 0, 1), (2, 1, 0), (2, 1, 1), (2, 2, 0),
    ]  # fmt: skip
    assert first["results"][0]["tokens"] == [{"text": "an", "id": 5, "logprob": -0.25}]
    second = client.get(first["next"]).json()
    assert second["results"][0]["completion"] == "answer 2.2.1"
    of_step = client.get(f"/rest/runs/{run.pk}/rollouts?step=1&q=answer 1.0").json()
    assert len(of_step["results"]) == 2
    assert open_rest(make_actor("mallory")).get(f"/rest/runs/{run.pk}/rollouts").status_code == 404


def test_a_replay_records_nothing_twice(run: Run) -> None:
    fill(run)
    fill(run)
    assert run.rollouts.count() == 12


def test_old_steps_lose_their_tokens_and_keep_their_text(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollouts, "KEPT_STEPS", 2)
    fill(run, num_steps=4)
    assert rollouts.thin_rollouts(limit=5) == 5
    assert rollouts.thin_rollouts() == 7
    assert rollouts.thin_rollouts() == 0
    kept = run.rollouts.exclude(tokens=[]).values_list("step", flat=True).distinct()
    assert set(kept) == {3, 4}
    assert all(run.rollouts.values_list("completion", flat=True))


def test_the_bar_of_a_reward_is_a_share_whatever_the_rewards_are() -> None:
    assert [measure_share(each, 0.0, 2.0) for each in (0.0, 1.0, 2.0)] == [0.0, 0.5, 1.0]
    assert [measure_share(each, -1.7e308, 1.7e308) for each in (-1.7e308, 0.0)] == [0.0, 0.5]
    assert measure_share(3.0, 3.0, 3.0) == 0.0
