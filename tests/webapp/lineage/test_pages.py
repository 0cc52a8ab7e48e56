"""The lineage of real rows: what is read, what its page and REST say, and whose it is."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils.timezone import now
from pytest_django import DjangoAssertNumQueries

from tests.webapp.cast import make_actor, sign_in
from tests.webapp.deployments.conftest import make_checkpoint
from tests.webapp.lineage.conftest import evaluate, make_run, make_version, save_many
from webapp.accounts.models import Actor
from webapp.accounts.services import create_key
from webapp.datasets.models import DatasetVersion
from webapp.deployments.models import Deployment
from webapp.evals.models import Alias, EvalSuite
from webapp.fleet.models import BaseModel
from webapp.lineage import reading
from webapp.lineage.graph import Graph
from webapp.lineage.reading import read_graph
from webapp.lineage.trails import list_origins
from webapp.runs.models import Run, RunGroup

PAGE = "/checkpoints/lineage/"
MOST_QUERIES = 18


def read(client: Client, url: str = PAGE) -> str:
    response = client.get(url)
    assert response.status_code == 200, response.content[:500]
    return response.content.decode()


def draw(graph: Graph) -> list[str]:
    """The forest as indented lines."""
    lines: list[str] = []

    def write(node_id: str, depth: int) -> None:
        node = graph.nodes[node_id]
        lines.append(f"{'  ' * depth}{node.kind} {node.label}")
        for child in graph.children.get(node_id, ()):
            write(child, depth + 1)

    for root in graph.find_roots():
        write(root, 0)
    return lines


def test_a_tree_goes_from_data_by_runs_to_what_came_of_them(
    alice: Actor, base_model: BaseModel, version: DatasetVersion, suite: EvalSuite
) -> None:
    cleaned = make_version(alice, 2, derived_from=version)
    first = make_run(alice, base_model, "first", dataset_version=cleaned)
    parent = make_checkpoint(first, name="step-10")
    make_checkpoint(first, name="passing", is_ephemeral=True, step=11)
    branch = make_run(alice, base_model, "branch", dataset_version=cleaned, parent=parent)
    make_checkpoint(branch, name="final")
    make_run(alice, base_model, "a client's", created_at=now() - timedelta(days=1))
    evaluate(suite, parent, 0.475)
    Deployment.objects.create(
        project=alice.project, name="live", base_model=base_model, checkpoint=parent
    )
    Alias.objects.create(project=alice.project, name="prod", checkpoint=parent)

    graph = read_graph(alice.project.pk).graph
    assert draw(graph) == [
        "dataset sums v1",
        "  dataset sums v2",
        "    run first",
        "      checkpoint step-10",
        "        evaluation held out",
        "        deployment live",
        "        alias prod",
        "        run branch",
        "          checkpoint final",
        "base tiny/chat",
        "  run a client's",
    ]
    (evaluation,) = [node for node in graph.nodes.values() if node.kind == "evaluation"]
    assert evaluation.detail == "47.5 % exact match"


def test_a_deleted_checkpoint_keeps_its_place_while_a_run_began_with_it(
    alice: Actor, base_model: BaseModel
) -> None:
    first = make_run(alice, base_model, "first")
    parent = make_checkpoint(first, name="parent", deleted_at=now())
    make_checkpoint(first, name="nobody's", deleted_at=now())
    make_run(alice, base_model, "branch", parent=parent)
    lines = draw(read_graph(alice.project.pk).graph)
    assert lines[2:] == ["    checkpoint parent", "      run branch"]


def test_a_stage_of_a_pipeline_comes_of_the_stage_before_it(
    alice: Actor, base_model: BaseModel, version: DatasetVersion
) -> None:
    judge = make_run(alice, base_model, "judge", dataset_version=version)
    policy = make_run(alice, base_model, "policy", dataset_version=version, after=judge)
    node = read_graph(alice.project.pk).graph.nodes[policy.pk]
    assert (node.main, list(node.others)) == (version.pk, [judge.pk])


def test_a_student_comes_of_the_teacher_that_its_settings_name(
    alice: Actor, base_model: BaseModel, version: DatasetVersion
) -> None:
    teacher = make_checkpoint(make_run(alice, base_model, "teacher", dataset_version=version))
    config = {"teacher": {"checkpoint": teacher.pk}, "judge": "ckpt-of-nobody"}
    student = make_run(
        alice,
        base_model,
        "student",
        recipe="on_policy_distillation",
        dataset_version=version,
        config=config,
    )
    node = read_graph(alice.project.pk).graph.nodes[student.pk]
    assert (node.main, list(node.others)) == (version.pk, [teacher.pk])


def test_the_page_folds_opens_focuses_and_finds(
    alice: Actor, browser: Client, base_model: BaseModel, version: DatasetVersion
) -> None:
    run = make_run(alice, base_model, "long one", dataset_version=version)
    saved = save_many(run, 12)
    page = read(browser)
    assert "12 checkpoints" in page
    assert "step-7" not in page.replace("names step-1, step-2", "")
    opened = read(browser, f"{PAGE}?open={run.pk}")
    assert opened.count('class="node checkpoint"') == 12
    assert "Fold what is open at long one" in opened
    focused = read(browser, f"{PAGE}?focus={saved[6].pk}")
    assert focused.count('class="node') == 3
    assert 'aria-current="true"' in focused
    found = read(browser, f"{PAGE}?q=STEP-7")
    assert "1 found" in found
    assert found.count("checkpoint hit") == 1
    assert "11 checkpoints" in found
    assert "Nothing here has" in read(browser, f"{PAGE}?q=zebra")
    assert read(browser, f"{PAGE}?fold=0").count('class="node checkpoint"') == 12


def test_odd_addresses_get_a_sentence(browser: Client, alice: Actor) -> None:
    for query, status in (
        *(("focus=nothing", 404), ("focus=run-zzz", 404), ("depth=-1", 400), ("depth=many", 400)),
        *(("depth=0", 400), ("focus=%00", 404), (f"q={'x' * 5000}", 200), ("open=nobody", 200)),
    ):
        assert (query, browser.get(f"{PAGE}?{query}").status_code) == (query, status)


def test_the_queries_do_not_grow_with_the_project(
    alice: Actor,
    browser: Client,
    base_model: BaseModel,
    version: DatasetVersion,
    suite: EvalSuite,
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    run = None
    for number in range(12):
        run = make_run(alice, base_model, f"run {number}", dataset_version=version)
        for checkpoint in save_many(run, 5):
            evaluate(suite, checkpoint, 0.5)
    assert run is not None
    for query in ("", "?fold=0", "?q=step", f"?focus={run.pk}"):
        with django_assert_max_num_queries(MOST_QUERIES):
            assert browser.get(PAGE + query).status_code == 200


def test_focus_reads_the_runs_around_it_however_old(
    alice: Actor, base_model: BaseModel, browser: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_RUNS", 4)
    old = make_run(alice, base_model, "old", created_at=now() - timedelta(days=9))
    for number in range(8):
        make_run(alice, base_model, f"new {number}")
    page = read(browser)
    assert ">old<" not in page
    assert "Not all runs were read" in page
    assert ">old<" in read(browser, f"{PAGE}?focus={old.pk}")


def test_the_page_of_an_empty_project_says_what_will_stand_there(browser: Client) -> None:
    assert "Nothing to draw yet" in read(browser)


def test_another_projects_rows_are_not_drawn_nor_found(
    alice: Actor, base_model: BaseModel, version: DatasetVersion
) -> None:
    saved = make_checkpoint(make_run(alice, base_model, "secret", dataset_version=version))
    stranger = sign_in(make_actor("charlie"))
    assert "secret" not in read(stranger)
    for node_id in (saved.pk, saved.run_id, version.pk):
        assert stranger.get(f"{PAGE}?focus={node_id}").status_code == 404


def test_a_parent_in_another_project_stands_without_a_link(
    alice: Actor, base_model: BaseModel
) -> None:
    charlie = make_actor("charlie")
    public = make_checkpoint(make_run(charlie, base_model, "theirs"), is_public=True)
    mine = make_run(alice, base_model, "mine", parent=public)
    node = read_graph(alice.project.pk).graph.nodes[public.pk]
    assert (node.url, node.detail) == ("", "another project's")
    assert [crumb.text for crumb in list_origins(mine)] == ["another project's checkpoint"]


def ask(actor: Actor, query: str = "") -> Any:
    _, secret = create_key(actor=actor, name="test")
    answer = Client().get(f"/rest/lineage/{query}", headers={"authorization": f"Bearer {secret}"})
    return answer.status_code, answer.json()


def test_a_sweep_is_one_node_that_opens(
    alice: Actor, browser: Client, base_model: BaseModel, version: DatasetVersion
) -> None:
    sweep = RunGroup.objects.create(project=alice.project, name="rates", kind="sweep")
    for number in range(4):
        run = make_run(alice, base_model, f"r{number}", dataset_version=version, group=sweep)
        save_many(run, 1)
    key = f"{version.pk}.{sweep.pk}"
    _, told = ask(alice, "?fold=1")
    (folded,) = [each for each in told["nodes"] if each["fold"]]
    assert (folded["id"], folded["fold"], folded["name"]) == (key, key, "rates")
    assert (folded["count"], folded["detail"]) == (4, "4 runs: 4 queued")
    assert {"parent": version.pk, "child": key} in told["edges"]
    _, opened = ask(alice, f"?fold=1&open={key}")
    assert len([each for each in opened["nodes"] if each["kind"] == "run"]) == 4
    assert f"open={key}" in read(browser)
    assert "Fold what is open at" in read(browser, f"{PAGE}?open={key}")


def test_rest_tells_nodes_edges_and_key_facts(
    alice: Actor, base_model: BaseModel, version: DatasetVersion, suite: EvalSuite
) -> None:
    run = make_run(alice, base_model, "first", dataset_version=version)
    (saved,) = save_many(run, 1)
    evaluation = evaluate(suite, saved, 0.5)
    status, told = ask(alice, f"?focus={saved.pk}&depth=1")
    assert status == 200
    assert [node["id"] for node in told["nodes"]] == [run.pk, saved.pk, evaluation.pk]
    assert told["edges"] == [
        {"parent": run.pk, "child": saved.pk},
        {"parent": saved.pk, "child": evaluation.pk},
    ]
    assert told["nodes"][1]["facts"]["size"] == "1000 B"
    assert (told["num_nodes"], told["note"]) == (3, "")


def test_rest_is_bounded_folds_and_refuses_in_a_sentence(
    alice: Actor, base_model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(alice, base_model, "first")
    save_many(run, 9)
    assert len(ask(alice, "?fold=1")[1]["nodes"]) == 3
    monkeypatch.setattr("webapp.lineage.rest.MOST_LISTED", 4)
    told = ask(alice)[1]
    assert len(told["nodes"]) == 4
    assert told["note"] == "4 of 11 nodes are listed: send focus, or fold=1."
    assert ask(alice, "?depth=x") == (
        400,
        {"error": {"message": "depth is 'x': send 1 or more, or leave it out.", "field": "depth"}},
    )
    assert ask(make_actor("charlie"), f"?focus={run.pk}")[0] == 404


def test_each_page_says_where_its_thing_comes_from(
    alice: Actor, browser: Client, base_model: BaseModel, version: DatasetVersion, suite: EvalSuite
) -> None:
    cleaned = make_version(alice, 2, derived_from=version)
    first = make_run(alice, base_model, "first", dataset_version=cleaned)
    (saved,) = save_many(first, 1)
    branch = make_run(alice, base_model, "branch", parent=saved)
    (last,) = save_many(branch, 1, first=2)
    evaluation = evaluate(suite, last, 0.5)
    served = Deployment.objects.create(
        project=alice.project, name="live", base_model=base_model, checkpoint=last
    )
    whole = ["sums v1", "sums v2", "first", "step-1", "branch", "step-2"]
    for page, thing, names in (
        (f"/datasets/versions/{cleaned.pk}/", cleaned, whole[:1]),
        (f"/runs/{branch.pk}/", branch, whole[:4]),
        (f"/checkpoints/{last.pk}/", last, whole[:5]),
        (f"/evals/{evaluation.pk}/", evaluation, whole),
        (f"/deployments/{served.pk}/", served, whole),
    ):
        assert [crumb.text for crumb in list_origins(thing)] == names
        shown = read(browser, page)
        assert f"?focus={thing.pk}" in shown
        assert "Where this comes from" in shown


def test_a_chain_of_many_branches_is_told_by_its_nearest_links(
    alice: Actor, base_model: BaseModel
) -> None:
    run: Run = make_run(alice, base_model, "run 0")
    for number in range(1, 8):
        (saved,) = save_many(run, 1, first=number)
        run = make_run(alice, base_model, f"run {number}", parent=saved)
    texts = [crumb.text for crumb in list_origins(run)]
    assert (texts[0], texts[-1], len(texts)) == ("…", "step-7", 9)


def test_the_checkpoints_page_shows_its_neighbourhood(
    alice: Actor, browser: Client, base_model: BaseModel
) -> None:
    run = make_run(alice, base_model, "first")
    saved = save_many(run, 6)
    page = read(browser, f"/checkpoints/{saved[0].pk}/")
    assert page.count('class="node') == 3
    passing = make_checkpoint(run, name="passing", is_ephemeral=True, step=30, seq=30)
    assert "stand in no lineage" in read(browser, f"/checkpoints/{passing.pk}/")
