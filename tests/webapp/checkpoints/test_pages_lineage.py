"""The lineage graph: who comes of whom, and where it is drawn."""

import pytest
from django.test import Client
from django.utils.timezone import now

from tests.webapp.cast import count_queries, make_actor, sign_in
from tests.webapp.checkpoints.test_pages import make_run, read
from tests.webapp.deployments.conftest import make_checkpoint
from webapp.accounts.models import Actor
from webapp.checkpoints.lineage import COLUMN, ROW, Node, lay_out, read_around, read_project
from webapp.datasets.models import Dataset, DatasetVersion
from webapp.deployments.models import Deployment
from webapp.evals.models import EvalSuite, Evaluation
from webapp.fleet.models import BaseModel, BaseModelName
from webapp.runs.models import Run


@pytest.fixture
def alice(db: None) -> Actor:
    return make_actor("alice")


@pytest.fixture
def browser(alice: Actor) -> Client:
    return sign_in(alice)


@pytest.fixture
def base_model(db: None) -> BaseModel:
    base_model = BaseModel.objects.create(path="/models/tiny")
    BaseModelName.objects.create(base_model=base_model, name="tiny/chat")
    return base_model


@pytest.fixture
def version(alice: Actor) -> DatasetVersion:
    dataset = Dataset.objects.create(project=alice.project, name="sums")
    return DatasetVersion.objects.create(
        project=alice.project, dataset=dataset, number=1, filename="a", num_rows=1200
    )


def make_node(key: str, *children: Node) -> Node:
    return Node(kind="run", key=key, label=key, detail="", url="", children=list(children))


def draw(nodes: list[Node], depth: int = 0) -> list[str]:
    """The forest as indented lines."""
    lines = []
    for node in nodes:
        lines.append(f"{'  ' * depth}{node.kind} {node.label}")
        lines += draw(node.children, depth + 1)
    return lines


def test_children_stand_a_column_further_and_leaves_a_row_lower() -> None:
    graph = lay_out(
        [make_node("a", make_node("b"), make_node("c", make_node("d"))), make_node("e")]
    )
    places = {spot.node.key: (spot.x // COLUMN, spot.y // ROW) for spot in graph.placed}
    assert places == {"a": (0, 0), "b": (1, 0), "c": (1, 1), "d": (2, 1), "e": (0, 2)}
    edges = {spot.node.key: bool(spot.edge) for spot in graph.placed}
    assert edges == {"a": False, "b": True, "c": True, "d": True, "e": False}


def test_a_chain_deeper_than_the_stack_is_drawn() -> None:
    node = make_node("leaf")
    for number in range(3000):
        node = make_node(str(number), node)
    assert len(lay_out([node]).placed) == 3001


def test_nothing_takes_no_room() -> None:
    graph = lay_out([])
    assert (graph.placed, graph.height) == ([], 0)


def test_a_tree_goes_from_data_by_runs_to_what_came_of_them(
    alice: Actor, base_model: BaseModel, version: DatasetVersion
) -> None:
    first = make_run(alice, base_model, "first", dataset_version=version)
    parent = make_checkpoint(first, name="step-10")
    make_checkpoint(first, name="passing", is_ephemeral=True, step=11)
    branch = make_run(alice, base_model, "branch", dataset_version=version, parent=parent)
    make_checkpoint(branch, name="final")
    make_run(alice, base_model, "a client's")
    suite = EvalSuite.objects.create(
        project=alice.project,
        name="held out",
        dataset_version=version,
        graders=[{"name": "exact_match"}],
    )
    Evaluation.objects.create(
        project=alice.project,
        suite=suite,
        base_model=base_model,
        checkpoint=parent,
        status="done",
        scores={"exact_match": 0.475},
    )
    Deployment.objects.create(
        project=alice.project, name="live", base_model=base_model, checkpoint=parent
    )

    forest = read_project(Run.objects.in_project(alice).order_by("created_at"))
    assert draw(forest) == [
        "dataset sums v1",
        "  run first",
        "    checkpoint step-10",
        "      evaluation held out",
        "      deployment live",
        "      run branch",
        "        checkpoint final",
        "base tiny/chat",
        "  run a client's",
    ]
    assert forest[0].children[0].children[0].children[0].detail == "47.5 % exact match"


def test_one_checkpoint_shows_the_chain_it_comes_from_and_what_came_of_it(
    alice: Actor, base_model: BaseModel, version: DatasetVersion
) -> None:
    first = make_run(alice, base_model, "first", dataset_version=version)
    parent = make_checkpoint(first, name="parent")
    make_checkpoint(first, name="sibling")
    middle = make_run(alice, base_model, "middle", parent=parent)
    here = make_checkpoint(middle, name="here")
    last = make_run(alice, base_model, "last", parent=here)
    make_checkpoint(last, name="end")

    assert draw(read_around(here)) == [
        "dataset sums v1",
        "  run first",
        "    checkpoint parent",
        "      run middle",
        "        checkpoint here",
        "          run last",
        "            checkpoint end",
    ]


def test_a_deleted_checkpoint_keeps_its_place_while_a_run_began_with_it(
    alice: Actor, base_model: BaseModel
) -> None:
    first = make_run(alice, base_model, "first")
    parent = make_checkpoint(first, name="parent", deleted_at=now())
    make_checkpoint(first, name="nobody's", deleted_at=now())
    make_run(alice, base_model, "branch", parent=parent)
    lines = draw(read_project(Run.objects.in_project(alice).order_by("created_at")))
    assert lines[2:] == ["    checkpoint parent", "      run branch"]


def test_the_page_takes_the_same_queries_for_one_run_and_for_five(
    alice: Actor, browser: Client, base_model: BaseModel, version: DatasetVersion
) -> None:
    run = make_run(alice, base_model, "first", dataset_version=version)
    make_checkpoint(run)
    once = count_queries(browser, "/checkpoints/lineage/")
    for number in range(4):
        more = make_run(alice, base_model, f"more {number}", dataset_version=version)
        make_checkpoint(more)
    assert count_queries(browser, "/checkpoints/lineage/") == once
    assert read(browser, "/checkpoints/lineage/").count('class="node checkpoint"') == 5


def test_the_page_of_an_empty_project_says_what_will_stand_there(browser: Client) -> None:
    assert "Nothing to draw yet" in read(browser, "/checkpoints/lineage/")


def test_another_projects_runs_are_not_drawn(alice: Actor, base_model: BaseModel) -> None:
    make_checkpoint(make_run(alice, base_model, "secret"))
    assert "secret" not in read(sign_in(make_actor("charlie")), "/checkpoints/lineage/")
