"""Splits of split rows: a run, a suite or a split draws by another hash than those before it."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps

from tests.training.recipes.pairs import make_pair
from tests.webapp.datasets.conftest import upload
from training.data.rows import Row
from training.data.validate import read_normalised
from training.recipes.config import RecipeConfig
from webapp.accounts.models import Actor
from webapp.datasets.deriving import derive_versions
from webapp.datasets.models import DatasetVersion
from webapp.datasets.services import append_row
from webapp.evals.models import EvalSuite
from webapp.evals.services import create_suite
from webapp.fleet.models import BaseModel
from webapp.runs.methods import METHODS
from webapp.runs.models import Origin, Run
from webapp.runs.scripts import Program, write_order
from webapp.runs.services import create_run
from workers import ingest
from workers.recipe import read_config
from workers.suites import list_dataset_rows

SPLIT = {"held_out_share": 0.1, "seed": 0}  # as the form of a run has them at first


def questions(number: int) -> list[dict[str, Any]]:
    return [{"prompt": f"number {each}", "completion": "yes"} for each in range(number)]


def split(actor: Actor, version: DatasetVersion) -> list[DatasetVersion]:
    made = derive_versions(actor=actor, version=version, split=SPLIT)
    for each in made:
        ingest.validate_version(each.pk)
        each.refresh_from_db()
    return made


def read(version: DatasetVersion, home: Path) -> list[Row]:
    return list(read_normalised(home / version.rows_path))


def launch(actor: Actor, base_model: BaseModel, version: DatasetVersion, **settings: Any) -> Run:
    config = {"steps": 1, "held_out_share": 0.1, **settings}
    return create_run(
        actor=actor,
        origin=Origin.BROWSER,
        name="",
        base_model=base_model,
        dataset_version=version,
        config=config,
    )


def test_a_run_on_the_train_side_of_a_split_holds_out_a_share_of_it(
    alice: Actor, base_model: BaseModel, home: Path
) -> None:
    train, _ = split(alice, upload(alice, *questions(300)))
    run = launch(alice, base_model, train)
    assert run.config["num_splits"] == 1
    learned, held_out = read_config(run).split(read(train, home))
    assert 12 <= len(held_out) <= 50
    assert len(learned) + len(held_out) == train.num_rows


def test_a_run_from_before_goes_on_to_hold_out_what_it_held_out(
    alice: Actor, base_model: BaseModel, home: Path
) -> None:
    version = upload(alice, *questions(300))
    train, held_out = split(alice, version)
    run = launch(alice, base_model, version)
    assert "num_splits" not in run.config
    kept = read_config(run).split(read(version, home))[1]
    assert [row.key for row in kept] == [row.key for row in read(held_out, home)]
    run.config |= {"held_out_share": 0.1}
    assert read_config(run).split(read(train, home))[1] == []


def test_a_side_is_split_again_and_a_run_with_the_same_numbers_holds_out_the_same(
    alice: Actor, base_model: BaseModel, home: Path
) -> None:
    train, _ = split(alice, upload(alice, *questions(300)))
    inner, held_out = split(alice, train)
    assert (inner.num_splits, held_out.num_splits) == (2, 2)
    assert held_out.num_rows > 0
    run = launch(alice, base_model, train)
    found = read_config(run).split(read(train, home))[1]
    assert [row.key for row in found] == [row.key for row in read(held_out, home)]
    assert read_config(launch(alice, base_model, inner)).split(read(inner, home))[1]


@pytest.mark.parametrize("by", ["row", "prompt"])
def test_a_suite_of_a_side_has_the_rows_that_a_run_on_it_holds_out(
    alice: Actor, base_model: BaseModel, home: Path, by: str
) -> None:
    train, _ = split(alice, upload(alice, *questions(300)))
    suite = create_suite(
        actor=alice,
        name="apart",
        graders=[{"name": "exact_match"}],
        dataset_version=train,
        held_out_by=by,
    )
    run = launch(alice, base_model, train, held_out_by=by)
    assert read_config(run).held_out_by == by
    held_out = read_config(run).split(read(train, home))[1]
    assert held_out
    made = EvalSuite.objects.select_related("dataset_version").get(pk=suite.pk)
    assert [row.number for row in list_dataset_rows(made)] == [row.number for row in held_out]


def test_rows_keep_their_splits_through_filters_and_with_a_row_more(alice: Actor) -> None:
    train, _ = split(alice, upload(alice, *questions(300)))
    spec = {"filter": "length", "most": 14}
    (filtered,) = derive_versions(actor=alice, version=train, filters=[spec], name="short")
    ingest.validate_version(filtered.pk)
    said = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    appended = append_row(actor=alice, name="short", row=said)
    assert (filtered.num_splits, appended.num_splits) == (1, 1)


def test_versions_and_runs_from_before_are_told_what_they_were(
    alice: Actor, base_model: BaseModel
) -> None:
    version = upload(alice, *questions(60))
    train, _ = split(alice, version)
    inner = derive_versions(actor=alice, version=train, filters=[{"filter": "duplicates"}])[0]
    DatasetVersion.objects.update(num_splits=0)
    import_module("webapp.datasets.migrations.0005_num_splits").count_splits(apps, None)
    counts = dict(DatasetVersion.objects.values_list("pk", "num_splits"))
    assert [counts[each.pk] for each in (version, train, inner)] == [0, 1, 1]
    run, other = (
        Run.objects.create(
            project=alice.project, recipe=recipe, base_model=base_model, rank=8, config={"steps": 3}
        )
        for recipe in ("dpo", "sft")
    )
    import_module("webapp.runs.migrations.0016_held_out_by_row").keep_split(apps, None)
    run.refresh_from_db()
    other.refresh_from_db()
    assert (run.config, other.config) == ({"held_out_by": "row", "steps": 3}, {"steps": 3})
    assert read_config(run).held_out_by == "row"


def make_pairs() -> list[Row]:
    texts = [(f"Why {each}?", answer) for each in range(40) for answer in ("So.", "Thus.")]
    return [make_pair(number, asked, answer, "No.") for number, (asked, answer) in enumerate(texts)]


def make_chats() -> list[Row]:
    return [
        Row(number=row.number, messages=[*row.messages, *row.metadata["chosen"]])
        for row in make_pairs()
    ]


def list_pair(row: Row) -> list[Any]:
    return [row.messages, row.metadata["chosen"], row.metadata["rejected"]]


@pytest.mark.parametrize("num_splits", [0, 2])
@pytest.mark.parametrize("by", ["row", "prompt"])
@pytest.mark.parametrize(
    ("recipe", "rows", "content"),
    [("dpo", make_pairs(), list_pair), ("sft", make_chats(), lambda row: list(row.messages))],
)
def test_the_program_holds_out_what_the_run_does(
    recipe: str, rows: list[Row], content: Callable[[Row], Any], by: str, num_splits: int
) -> None:
    settings: Mapping[str, Any] = {
        "held_out_share": 0.4,
        "seed": 7,
        "held_out_by": by,
        "num_splits": num_splits,
    }
    config: RecipeConfig = METHODS[recipe].config.from_dict(settings)
    program = Program(
        url="http://x", base_model="m", context_tokens=0, version_id="v", config=config
    )
    assert write_order(config) in METHODS[recipe].script(program)
    names: dict[str, Any] = {"SEED": 7, "HELD_OUT_SHARE": 0.4}
    exec("import hashlib, json, math\n" + write_order(config), names)
    keys = [(row, names["hash_row"](content(row))) for row in rows]
    assert all(key == row.key for row, key in keys)
    found = [row.number for row, key in keys if names["is_held_out"](key)]
    assert found == [row.number for row in config.split(rows)[1]]
    assert 8 <= len(found) <= 60
