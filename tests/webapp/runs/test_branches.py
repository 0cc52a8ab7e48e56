"""A family of runs: its tree, its one curve with forks, and the tab that shows them."""

from collections.abc import Sequence

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from tests.webapp.cast import make_actor, make_base_model, sign_in
from tests.webapp.deployments.conftest import make_checkpoint
from tests.webapp.lineage.conftest import make_run
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.fleet.models import BaseModel
from webapp.runs.branch_curves import connect, draw, list_ticks, read_points, spread
from webapp.runs.branches import Branch, read_family
from webapp.runs.history import record_metrics
from webapp.runs.models import Operation, Run

pytestmark = pytest.mark.django_db


@pytest.fixture
def alice(db: None) -> Actor:
    return make_actor("alice")


@pytest.fixture
def base_model(db: None) -> BaseModel:
    return make_base_model()


def train(run: Run, losses: Sequence[float]) -> None:
    for step, loss in enumerate(losses, start=1):
        record_metrics(run, step, {"loss": loss})
        Operation.objects.create(run=run, seq=step, kind="optim_step", digest="")
    Run.objects.filter(pk=run.pk).update(step=len(losses), last_loss=losses[-1])


def branch_from(run: Run, step: int, name: str, losses: Sequence[float]) -> Run:
    saved = run.checkpoints.filter(step=step).first()
    name_of_parent = f"{run.name}-{step}"
    parent = saved or make_checkpoint(run, name=name_of_parent, step=step, seq=step)
    actor = Actor(user=run.project.members.get(), project=run.project, role="owner")
    branch = make_run(actor, run.base_model, name, parent=parent, status="done")
    train(branch, losses)
    return branch


def make_root(alice: Actor, base_model: BaseModel) -> Run:
    root = make_run(alice, base_model, "root", status="done")
    train(root, [4.0, 3.0, 2.0, 1.0])
    return root


def describe(family: Sequence[Branch]) -> list[tuple[str, int, int, int, int]]:
    return [(b.run.name, b.depth, b.start, b.end, b.parent_number) for b in family]


def test_branches_count_on_from_the_step_that_they_begin_with(
    alice: Actor, base_model: BaseModel
) -> None:
    root = make_root(alice, base_model)
    early = branch_from(root, 2, "early", [2.5, 2.4])
    deep = branch_from(early, 1, "deep", [9.0])
    branch_from(root, 4, "late", [0.5])
    whole = [
        ("root", 0, 0, 4, 0),
        ("early", 1, 2, 4, 1),
        ("deep", 2, 3, 4, 2),
        ("late", 1, 4, 5, 1),
    ]
    for member in (root, early, deep):
        assert describe(read_family(member)) == whole
    lonely = make_run(alice, base_model, "lonely")
    assert describe(read_family(lonely)) == [("lonely", 0, 0, 0, 0)]


def test_a_line_leaves_its_parents_where_that_was_at_the_fork(
    alice: Actor, base_model: BaseModel
) -> None:
    root = make_root(alice, base_model)
    early = branch_from(root, 2, "early", [2.5, 2.4])
    branch_from(early, 1, "deep", [9.0])
    family = read_family(root)
    assert connect(family, read_points(family, "loss")) == {
        1: [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)],
        2: [(2, 3.0), (3, 2.5), (4, 2.4)],
        3: [(3, 2.5), (4, 9.0)],
    }
    chart = draw(family, read_points(family, "loss"), "loss")
    assert chart is not None
    assert [fork.branch.run.name for fork in chart.forks] == ["early", "deep"]
    root_line, early_line, _ = chart.lines
    assert early_line.points.split()[0] == root_line.points.split()[1]


def test_a_copy_stands_where_its_source_stood(alice: Actor, base_model: BaseModel) -> None:
    root = make_root(alice, base_model)
    source = make_checkpoint(root, name="source", step=3, seq=3)
    copy = make_run(alice, base_model, "copy", parent=source, status="done", step=3)
    branch_from(copy, 3, "after", [1.5])
    assert describe(read_family(root))[1:] == [("copy", 1, 3, 3, 1), ("after", 2, 3, 4, 2)]


def test_another_projects_runs_are_no_family(alice: Actor, base_model: BaseModel) -> None:
    bob = make_actor("bob")
    theirs = make_checkpoint(make_run(bob, base_model, "theirs"), is_public=True)
    mine = make_run(alice, base_model, "mine", parent=theirs)
    assert [branch.run.name for branch in read_family(mine)] == ["mine"]


def test_long_runs_are_drawn_by_the_means_of_their_stretches(
    alice: Actor, base_model: BaseModel
) -> None:
    root = make_run(alice, base_model, "long", step=4000)
    for step in range(1, 41):
        record_metrics(root, step, {"loss": float(step)})
    family = read_family(root)
    points = read_points(family, "loss")[root.pk]
    assert points[0] == (1, 5.0)  # the mean of steps 1 to 9
    assert points[1] == (10, 14.5)
    assert len(points) == 5


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.11, 0.29, [0.15, 0.2, 0.25]), (-3, 3, [-2, 0, 2])],
)
def test_ticks_are_round_numbers(low: float, high: float, wanted: list[float]) -> None:
    assert list_ticks(low, high) == pytest.approx(wanted)


def test_level_and_odd_curves_can_be_drawn() -> None:
    for low, high in ((0.0, 0.0), (5.0, 5.0), (-1e99, 1e99), (0.0, 5e-324), (1.0, 1.0 + 1e-16)):
        bottom, top = spread(low, high)
        assert len(list_ticks(bottom, top)) >= 2
    assert list_ticks(0, 1, whole=True) == [0, 1]


def test_the_tab_stands_where_there_is_a_family(
    alice: Actor,
    base_model: BaseModel,
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    client = sign_in(alice)
    root = make_root(alice, base_model)
    assert "?tab=branches" not in client.get(f"/runs/{root.pk}/").content.decode()
    alone = client.get(f"/runs/{root.pk}/?tab=branches").content.decode()
    assert "No run branches from this one" in alone
    for number in range(30):
        branch_from(root, 2, f"branch {number}", [1.0, 0.5])
    assert "?tab=branches" in client.get(f"/runs/{root.pk}/").content.decode()
    with django_assert_max_num_queries(40):
        page = client.get(f"/runs/{root.pk}/?tab=branches").content.decode()
    assert page.count("<polyline") - page.count('class="sparkline"') <= 24
    assert "The first 24 of 31 are drawn" in " ".join(page.split())
    forks = Checkpoint.objects.filter(branches__isnull=False)
    assert page.count("begins with root-2, global step 2") == 23
    assert forks.count() == 30
    assert client.get(f"/runs/{root.pk}/?tab=branches&curve=odd").status_code == 200


def test_a_stranger_sees_no_family(alice: Actor, base_model: BaseModel) -> None:
    root = make_root(alice, base_model)
    stranger: Client = sign_in(make_actor("charlie"))
    assert stranger.get(f"/runs/{root.pk}/?tab=branches").status_code == 404
