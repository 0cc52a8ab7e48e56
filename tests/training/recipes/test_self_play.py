"""Self-play: rules that hold, moves that lose, and a policy that comes to win."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.training.recipes.learning import TINY, Done
from training.data.tokenizer import ChatTokenizer
from training.errors import InvalidInput
from training.model import Future
from training.recipes.games import GAMES, Nim, TicTacToe, choose_best, read_move, value_after
from training.recipes.rollouts import Rollout
from training.recipes.self_play import Arena, SelfPlayConfig
from training.types import SampledSequence, SampleOutput, SampleRequest

TOKENIZER = ChatTokenizer.load(TINY)


def configure(**changes: Any) -> SelfPlayConfig:
    usual = {"steps": 2, "batch_size": 2, "group_size": 2, "max_tokens": 4, "eval_games": 8}
    return SelfPlayConfig.from_dict(usual | changes)


def test_who_leaves_a_multiple_of_four_stones_wins_at_nim() -> None:
    values: dict[str, float] = {}
    lost = [stones for stones in range(1, 13) if value_after(Nim(), str(stones), values) == 1]
    assert lost == [4, 8, 12]  # for whoever has to move
    assert [choose_best(Nim(), str(stones), values) for stones in (5, 6, 7)] == [1, 2, 3]


def test_two_who_make_no_mistake_draw_at_tic_tac_toe() -> None:
    game, values = TicTacToe(), dict[str, float]()
    position = game.begin(b"", seed=0)
    while game.judge(position) is None:
        position = game.move(position, choose_best(game, position, values))
    assert game.judge(position) == 0
    assert sorted(position) == ["O"] * 4 + ["X"] * 5


@pytest.mark.parametrize(
    ("position", "worth"),
    [("XXXOO....", 1), ("XOXOXOX..", 1), ("OX.OX.O.X", 1), ("XOXXOOOXX", 0), ("XO.......", None)],
)
def test_three_in_a_row_end_tic_tac_toe(position: str, worth: float | None) -> None:
    assert TicTacToe().judge(position) == worth


@pytest.mark.parametrize(
    ("text", "move"),
    [("3", 3), (" 2.", 2), ("1 stone", 1), ("4", None), ("0", None), ("-1", None), ("", None),
     ("three", None), ("99999999", None)],
)  # fmt: skip
def test_only_a_number_that_the_rules_allow_is_a_move(text: str, move: int | None) -> None:
    assert read_move(Nim(), "5", text) == move


def test_what_is_not_there_cannot_be_taken() -> None:
    assert read_move(Nim(), "2", "3") is None
    assert read_move(TicTacToe(), "X........", "1") is None


def test_beginnings_are_drawn_by_their_key() -> None:
    heaps = {Nim().begin(str(key).encode(), seed=1) for key in range(100)}
    assert heaps == {str(stones) for stones in range(4, 10)}
    assert Nim().begin(b"7", seed=1) == Nim().begin(b"7", seed=1)


def read_stones(asked: str) -> int:
    return int(asked.split(" of ")[1].split("?", maxsplit=1)[0])


@dataclass
class Player:
    """Answers each position as it is told, and remembers who asked what."""

    choose: Callable[[int], str]
    asked: list[Mapping[str, Any]] = field(default_factory=list)

    def sample(self, request: SampleRequest, *, about: Mapping[str, Any]) -> Future[SampleOutput]:
        self.asked.append(about)
        text = TOKENIZER.decode(list(request.prompt), skip_special=True)
        stones = read_stones(text)
        tokens = [*TOKENIZER.encode(self.choose(stones)), 2]
        sequence = SampledSequence(tokens=tokens, logprobs=[-0.5] * len(tokens), stop_reason="stop")
        return Done(SampleOutput(sequences=[sequence]))


def perfect(stones: int) -> str:
    return str(stones % 4 or 1)


def play(player: Player, **changes: Any) -> list[list[Rollout]]:
    groups = Arena(config=configure(**changes), tokenizer=TOKENIZER).ask(1, 1, player)()
    return [group.rollouts for group in groups]


def test_every_turn_earns_what_its_side_got_in_the_end() -> None:
    for turns in play(Player(perfect)):
        stones = read_stones(turns[0].messages[0]["content"])
        # A heap of a multiple of four is lost for whoever has to take from it.
        assert {turn.reward for turn in turns} == {1.0 if stones % 4 else -1.0}
        assert {turn.scores["legal"] for turn in turns} == {1.0}


def test_a_move_that_is_none_loses_at_once() -> None:
    player = Player(lambda stones: "many")
    groups = play(player)
    assert len(player.asked) == 4  # games of one turn
    assert {(turn.reward, turn.scores["legal"]) for turns in groups for turn in turns} == {(-1, 0)}


def test_turns_at_one_position_are_compared_with_each_other() -> None:
    answers = iter(
        [
            "many",
            "1",
            "1",
            "1",
            "1",
            "1",
            "1",
            "1",
            "1",
            "1",
            "1",
            "1",
            "1",
            "1",
            "1",
            "1",
            "1",
            "1",
            "1",
            "1",
            "1",
            "1",
            "1",
        ]
    )
    groups = play(Player(lambda stones: next(answers)), batch_size=1)
    assert len({turns[0].messages[0]["content"] for turns in groups}) == len(groups)
    first = next(turns for turns in groups if any(not turn.scores["legal"] for turn in turns))
    assert len(first) == 2
    assert sorted(turn.scores["legal"] for turn in first) == [0.0, 1.0]


def test_only_the_newest_weights_learn_against_a_frozen_opponent() -> None:
    arena = Arena(
        config=configure(opponent="frozen", frozen_every=5, group_size=4), tokenizer=TOKENIZER
    )
    old, new = Player(perfect), Player(lambda stones: "1")
    arena.ask(1, 1, old)()
    old.asked.clear()
    groups = arena.ask(2, 2, new)()
    learned = sum(len(group.rollouts) for group in groups)
    assert learned == len(new.asked) > 0
    assert old.asked
    sides = {(about["match"] % 2, about["turn"] % 2) for about in new.asked}
    assert sides == {(0, 0), (1, 1)}  # who learns begins every second game


def test_a_perfect_policy_wins_all_it_can() -> None:
    arena = Arena(config=configure(eval_games=40), tokenizer=TOKENIZER)
    measured = arena.measure(Player(perfect), 3)
    assert measured["win_rate/random"] > 0.8
    # Against who makes no mistake either, the beginning decides.
    begun = [int(Nim().begin(f"0/{n}".encode(), seed=0)) for n in range(40)]
    won = [(heap % 4 != 0) == (n % 2 == 0) for n, heap in enumerate(begun)]
    assert measured["win_rate/optimal"] == sum(won) / 40
    assert arena.measure(Player(lambda stones: "none"), 3) == {
        "win_rate/random": 0.0, "win_rate/optimal": 0.0,
    }  # fmt: skip


def test_games_are_counted_in_steps() -> None:
    with pytest.raises(InvalidInput, match="steps are missing"):
        SelfPlayConfig.from_dict({})
    with pytest.raises(InvalidInput, match="give one of nim, tic_tac_toe"):
        configure(game="chess")
    assert set(GAMES) == {"nim", "tic_tac_toe"}
