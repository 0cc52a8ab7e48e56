"""Focus, search, folds and places, on graphs that are made by hand."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from webapp.lineage.drawing import shorten
from webapp.lineage.folding import fold
from webapp.lineage.graph import Graph, Node, build, focus, search
from webapp.lineage.layout import COLUMN, ROW, Layout, lay_out

MOST = 10_000


def make(node_id: str, main: str = "", *others: str, kind: str = "", **columns: Any) -> Node:
    """`run-a` is a run, `ckpt-1` a checkpoint, and so on."""
    kinds = {"run": "run", "ckpt": "checkpoint", "dsv": "dataset", "eval": "evaluation"}
    kind = kind or kinds.get(node_id.partition("-")[0], "run")
    columns = {"label": node_id, "detail": "", **columns}
    return Node(id=node_id, kind=kind, main=main, others=others, **columns)


def chain() -> Graph:
    return build(
        [
            make("dsv-1"),
            make("dsv-2", "dsv-1"),
            make("run-a", "dsv-2"),
            make("ckpt-1", "run-a"),
            make("ckpt-2", "run-a"),
            make("run-b", "ckpt-2", "dsv-3"),
            make("dsv-3"),
            make("ckpt-3", "run-b"),
            make("eval-1", "ckpt-3", suite="s"),
        ]
    )


def find_places(layout: Layout) -> dict[str, tuple[int, int]]:
    return {spot.node.id: (spot.x // COLUMN, spot.y // ROW) for spot in layout.spots}


def test_focus_keeps_ancestors_and_descendants_and_no_siblings() -> None:
    kept = focus(chain(), "run-b", depth=None).nodes
    assert list(kept) == [
        *("dsv-1", "dsv-2", "run-a", "ckpt-2", "run-b", "dsv-3", "ckpt-3", "eval-1")
    ]
    assert list(focus(chain(), "run-b", depth=1).nodes) == ["ckpt-2", "run-b", "dsv-3", "ckpt-3"]


def test_a_node_whose_first_parent_is_out_of_sight_hangs_on_the_other_one() -> None:
    kept = focus(chain(), "dsv-3", depth=1)
    assert kept.nodes["run-b"].main == "dsv-3"
    assert find_places(lay_out(kept, most=MOST)) == {"dsv-3": (0, 0), "run-b": (1, 0)}


def test_a_search_reads_names_ids_and_facts() -> None:
    graph = build([make("run-a", label="Sums"), make("run-b", facts=[("digest", "ab12")])])
    assert search(graph, "sUMS") == ["run-a"]
    assert search(graph, "b12") == ["run-b"]
    assert search(graph, "run-") == ["run-a", "run-b"]
    assert search(graph, "nothing") == []


def test_children_stand_a_column_further_and_leaves_a_line_lower() -> None:
    nodes = [make("a"), make("b", "a"), make("c", "a"), make("d", "c"), make("e")]
    places = find_places(lay_out(build(nodes), most=MOST))
    assert places == {"a": (0, 0), "b": (1, 0), "c": (1, 1), "d": (2, 1), "e": (0, 2)}


def test_data_that_a_branch_brings_in_stands_beside_it() -> None:
    layout = lay_out(chain(), most=MOST)
    places = find_places(layout)
    assert places["run-b"][1] == places["dsv-3"][1]
    assert places["dsv-3"][0] == places["run-b"][0] - 1
    sides = [edge for edge in layout.edges if edge.is_side]
    assert [(edge.start.node.id, edge.end.node.id) for edge in sides] == [("dsv-3", "run-b")]


def test_second_sources_are_drawn_where_one_node_is_looked_at() -> None:
    nodes = [make("dsv-1"), make("run-a", "dsv-1"), make("ckpt-1", "run-a")]
    nodes += [make(f"run-{name}", "ckpt-1", "dsv-2") for name in "bc"]
    graph = build([*nodes, make("dsv-2")])
    assert not lay_out(graph, most=MOST, with_sides=False).has_side_edges
    assert sum(edge.is_side for edge in lay_out(graph, most=MOST).edges) == 2


def test_a_chain_deeper_than_the_stack_is_drawn() -> None:
    nodes = [make("0")] + [make(str(number), str(number - 1)) for number in range(1, 3000)]
    assert len(lay_out(build(nodes), most=MOST).spots) == 3000


def test_what_is_too_much_is_counted_and_not_drawn() -> None:
    nodes = [make(str(number)) for number in range(10)]
    layout = lay_out(build(nodes), most=4)
    assert (len(layout.spots), layout.num_hidden) == (4, 6)
    assert lay_out(build([]), most=4).height == 0


@st.composite
def forests(draw: st.DrawFn) -> Graph:
    number = draw(st.integers(1, 40))
    nodes = [make("n0")]
    for place in range(1, number):
        parents = st.one_of(st.just(""), st.integers(0, place - 1).map(lambda at: f"n{at}"))
        others = draw(st.lists(st.integers(0, place - 1).map(lambda at: f"n{at}"), max_size=2))
        main = draw(parents)
        nodes.append(make(f"n{place}", main, *(each for each in others if each != main)))
    return build(nodes)


@given(forests())
def test_every_node_has_a_place_of_its_own_and_no_line_runs_through_one(graph: Graph) -> None:
    layout = lay_out(graph, most=MOST)
    places = find_places(layout)
    assert places.keys() == graph.nodes.keys()
    assert len(set(places.values())) == len(places)
    for edge in layout.edges:
        if edge.is_side:
            continue
        (start, top), (end, bottom) = places[edge.start.node.id], places[edge.end.node.id]
        assert end == start + 1
        assert bottom >= top
    assert find_crossings(layout) == []


def find_crossings(layout: Layout) -> list[tuple[str, str]]:
    """Trunks of different parents in the same gap between columns, whose lines overlap."""
    reach: dict[tuple[int, str], list[int]] = {}
    for edge in layout.edges:
        if not edge.is_side:
            key = (edge.start.column, edge.start.node.id)
            reach.setdefault(key, [edge.start.line]).append(edge.end.line)
    found = []
    for (column, first), lines in reach.items():
        for (other_column, second), others in reach.items():
            apart = max(lines) < min(others) or max(others) < min(lines)
            if column == other_column and first < second and not apart:
                found.append((first, second))
    return found


def test_plain_checkpoints_of_a_run_fold_and_those_that_something_came_of_do_not() -> None:
    graph = build(
        [
            make("run-a"),
            *(make(f"ckpt-{step}", "run-a", step=step, size_bytes=1024) for step in range(1, 8)),
            make("run-b", "ckpt-7"),
            make("eval-1", "ckpt-1", suite="s", score=0.25),
            make("eval-2", "ckpt-2", suite="s", score=0.5),
            make("eval-3", "ckpt-2", suite="t", score=0.75),
        ]
    )
    folded = fold(graph, opened=()).graph
    stack = folded.nodes["run-a.checkpoints"]
    assert (stack.label, stack.detail, stack.count) == ("6 checkpoints", "steps 1 to 6, 6.0 KiB", 6)
    assert set(folded.nodes) == {
        *("run-a", "run-a.checkpoints", "ckpt-7", "run-b", "run-a.checkpoints.s", "eval-3")
    }
    assert folded.nodes["run-a.checkpoints.s"].detail == "2 times, best 50 %"
    assert folded.nodes["eval-3"].main == "run-a.checkpoints"


def make_sweep() -> list[Node]:
    """Six runs of one group on one version, each with a checkpoint that was evaluated."""
    nodes = [make("dsv-1")]
    for number in range(6):
        status = "failed" if number == 5 else "done"
        own = {"group": "grp-1", "group_name": "rates", "status": status}
        nodes += [
            make(f"run-{number}", "dsv-1", **own),
            make(f"ckpt-{number}", f"run-{number}", step=1),
            make(f"eval-{number}", f"ckpt-{number}", suite="s", score=0.5),
        ]
    return nodes


def test_runs_of_a_group_fold_with_all_that_came_of_them() -> None:
    folded = fold(build(make_sweep()), opened=()).graph
    assert set(folded.nodes) == {"dsv-1", "dsv-1.grp-1"}
    sweep = folded.nodes["dsv-1.grp-1"]
    assert (sweep.label, sweep.detail) == ("rates", "6 runs: 5 done, 1 failed")
    assert (sweep.kind, sweep.main, sweep.count) == ("run", "dsv-1", 6)
    opened = fold(build(make_sweep()), opened={"dsv-1.grp-1"})
    assert len(opened.graph.nodes) == 19
    assert opened.opened == {"dsv-1": ["dsv-1.grp-1"]}


def test_a_run_of_a_group_that_something_came_of_or_that_is_looked_at_stands_alone() -> None:
    nodes = [*make_sweep(), make("dep-1", "ckpt-0"), make("run-b", "ckpt-1")]
    folded = fold(build(nodes), opened=()).graph
    alone = {"run-0", "ckpt-0", "eval-0", "dep-1", "run-1", "ckpt-1", "eval-1", "run-b"}
    assert set(folded.nodes) == {"dsv-1", "dsv-1.grp-1", *alone}
    assert folded.nodes["dsv-1.grp-1"].count == 4
    looked_at = fold(build(nodes), opened=(), standing={"eval-2"}).graph
    assert "run-2" in looked_at.nodes  # three are left, which are as quick to read
    assert "dsv-1.grp-1" not in looked_at.nodes


def test_an_open_fold_shows_its_nodes_and_says_where_it_closes() -> None:
    graph = build([make("run-a"), *(make(f"ckpt-{step}", "run-a", step=step) for step in range(5))])
    folded = fold(graph, opened={"run-a"})
    assert len(folded.graph.nodes) == 6
    assert folded.opened == {"run-a": ["run-a"]}


def test_a_fold_says_how_many_of_it_are_deleted() -> None:
    saved = [
        make(f"ckpt-{step}", "run-a", step=step, size_bytes=1024 * (step > 1), is_gone=step < 2)
        for step in range(5)
    ]
    folded = fold(build([make("run-a"), *saved]), opened=()).graph
    assert folded.nodes["run-a.checkpoints"].detail == "steps 0 to 4, 3.0 KiB, 2 deleted"


def test_what_is_looked_at_stands_alone() -> None:
    graph = build([make("run-a"), *(make(f"ckpt-{step}", "run-a", step=step) for step in range(6))])
    folded = fold(graph, opened=(), standing={"ckpt-3"}).graph
    assert set(folded.nodes) == {"run-a", "run-a.checkpoints", "ckpt-3"}
    assert folded.nodes["run-a.checkpoints"].count == 5


def test_long_names_are_cut_to_their_node() -> None:
    assert shorten("short", 170, pixels=7) == "short"
    assert shorten("m" * 80, 170, pixels=7).endswith("…")
    assert len(shorten("i" * 60, 170, pixels=7)) > 2 * len(shorten("W" * 60, 170, pixels=7))
    assert len(shorten("数" * 60, 170, pixels=7)) < 14
