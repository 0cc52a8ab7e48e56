"""Self-play over the log: no dataset, contests on a cadence, the same after a kill."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils.timezone import now

from tests.workers.cast import make_device, make_tiny
from tests.workers.rollouts import ProcessKilled, RolloutWaiter
from tests.workers.test_distillation import make, make_version
from tests.workers.test_rl import drive, list_operations, list_rollouts, read_curve
from training.recipes.games import Nim
from webapp.accounts.models import Actor
from webapp.checkpoints.models import Checkpoint
from webapp.core.errors import UserError
from webapp.deployments.models import SamplingCall
from webapp.fleet.models import BaseModel
from webapp.runs import services
from webapp.runs.models import LogLine, Run
from webapp.runs.records import Rollout

pytestmark = pytest.mark.django_db

CONFIG: dict[str, Any] = {
    "rank": 4,
    "learning_rate": 0.001,
    "batch_size": 2,
    "group_size": 4,
    "max_tokens": 4,
    "steps": 3,
    "evaluate_every": 3,
    "eval_games": 4,
    "sampling": {"every": 0},
}


def make_game_run(actor: Actor, parent: Any = None, **changes: Any) -> Run:
    return services.create_run(
        actor=actor,
        origin="browser",
        name="",
        base_model=BaseModel.objects.first() or make_tiny(),
        dataset_version=None,
        config=CONFIG | changes,
        recipe="self_play",
        parent=parent,
    )


def test_games_are_played_learned_from_and_measured(actor: Actor) -> None:
    run = drive(make_game_run(actor))
    assert (run.status, run.error, run.step) == ("done", "", 3)
    assert set(read_curve(run, "win_rate/random")) == {3}
    assert set(read_curve(run, "win_rate/optimal")) == {3}
    assert list(read_curve(run, "reward/legal")) == [1, 2, 3]
    first = Rollout.objects.filter(run=run, step=1)[0]
    assert "Nim, last one wins." in first.prompt[0]["content"]
    lines = list(LogLine.objects.filter(run=run).values_list("text", flat=True))
    assert "8 games of nim a batch in 3 steps." in lines
    assert any(line.startswith("After step 3: win rate random ") for line in lines)


def test_a_beginner_learns_the_rules_from_its_own_games(actor: Actor, tmp_path: Path) -> None:
    """It has seen each move once or twice, and plays against itself from there. What breaks the
    rules loses, so it soon breaks none; and it loses less to an opponent who moves at random."""
    nim = Nim()
    rows = [
        {
            "messages": [
                {"role": "user", "content": nim.ask(str(heap))},
                {"role": "assistant", "content": str(move)},
            ]
        }
        for heap in range(1, nim.most + 1)
        for move in nim.list_moves(str(heap))
    ]
    shown: dict[str, Any] = {
        "rank": 8,
        "learning_rate": 0.003,
        "schedule": "constant",
        "batch_size": 24,
    }
    shown |= {"steps": 2, "evaluate_every": 0, "held_out_share": 0, "sampling": {"every": 0}}
    version = make_version(actor, tmp_path, rows, "conversation")
    beginner = drive(make(actor, version, "sft", shown))
    config: dict[str, Any] = {
        "batch_size": 8,
        "steps": 6,
        "learning_rate": 0.002,
        "seed": 3,
        "rank": 8,
    }
    config |= {"evaluate_every": 1, "eval_games": 30}
    parent = Checkpoint.objects.get(run=beginner, kind="training")
    run = drive(make_game_run(actor, parent=parent, **config))
    assert (run.status, run.error) == ("done", "")
    legal, won = read_curve(run, "reward/legal"), read_curve(run, "win_rate/random")
    assert legal[1] < 0.85
    assert legal[6] > 0.95
    assert won[6] > won[1]


@pytest.mark.parametrize("ahead", [0, 1])
def test_weights_that_stay_the_opponent_are_kept_until_the_next_ones(
    actor: Actor, ahead: int
) -> None:
    frozen = {"opponent": "frozen", "frozen_every": 2, "max_steps_off_policy": ahead, "loss": "ppo"}
    run = drive(make_game_run(actor, **frozen, steps=5, evaluate_every=0))
    assert (run.status, run.error) == ("done", "")
    kept = Checkpoint.objects.filter(run=run, expires_at__gt=now() + timedelta(days=1))
    # Batches 3 and 5 freeze what answers them: with one batch ahead that is a step older.
    assert [each.step for each in kept.order_by("step")][:2] == [2 - ahead, 4 - ahead]


def test_a_driver_that_was_killed_plays_the_same_games(actor: Actor) -> None:
    undisturbed = drive(make_game_run(actor, opponent="frozen", frozen_every=2))
    run, waiter = make_game_run(actor, opponent="frozen", frozen_every=2), RolloutWaiter()
    waiter.device, waiter.kill_recipe_at = make_device("w2"), 9
    with pytest.raises(ProcessKilled):
        drive(run, waiter)
    Run.objects.filter(pk=run.pk).update(driver_until=run.created_at)
    ended = drive(run, waiter, driver="d2")
    assert (ended.status, ended.error) == ("done", "")
    assert list_operations(run) == list_operations(undisturbed)
    assert list_rollouts(run) == list_rollouts(undisturbed)
    assert SamplingCall.objects.filter(run=run).count() == (
        SamplingCall.objects.filter(run=undisturbed).count()
    )


def test_a_dataset_is_refused_and_steps_are_needed(actor: Actor) -> None:
    with pytest.raises(UserError, match="steps are missing"):
        make_game_run(actor, steps=None)
