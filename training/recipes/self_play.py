"""Self-play: both sides of a small game are sampled from the policy, and its wins teach it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from training.data.batches import draw
from training.data.tokenizer import ChatTokenizer
from training.errors import InvalidInput
from training.model import Sampler
from training.recipes.fields import Check, one_of, whole
from training.recipes.games import (
    GAMES,
    LOSS,
    WIN,
    Game,
    choose_best,
    choose_random,
    read_move,
)
from training.recipes.policy import Collect
from training.recipes.rl_config import POLICY_CHECKS, PolicyConfig
from training.recipes.rollouts import Group, Prompt, Rollout
from training.types import SampleRequest, SamplingParams

Opponent = Literal["self", "frozen"]
About = Mapping[str, Any]
OPPONENTS = ("random", "optimal")


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfPlayConfig(PolicyConfig):
    """`batch_size` beginnings a batch, each played `group_size` times."""

    CHECKS: ClassVar[Mapping[str, Check]] = {
        **POLICY_CHECKS,
        "game": one_of(tuple(GAMES)),
        "opponent": one_of(("self", "frozen")),
        "frozen_every": whole(1, 10_000),
        "eval_games": whole(2, 1000),
    }
    TITLE: ClassVar[str] = "self-play"

    max_tokens: int = 8
    held_out_share: float = 0.0
    game: str = "nim"
    opponent: Opponent = "self"
    frozen_every: int = 10  # batches, after which a frozen opponent is the policy of then
    eval_games: int = 64  # against each opponent of an evaluation

    @classmethod
    def from_dict(cls, data: Any) -> "SelfPlayConfig":
        config = super(SelfPlayConfig, cls).from_dict(data)
        config.check_loss()
        if config.steps is None:
            raise InvalidInput("steps are missing: there are no rows to count epochs by")
        return config


@dataclass(slots=True, kw_only=True)
class Match:
    """A game being played. `turns` are those of both sides, in order."""

    position: str
    key: str  # what its seeds come from
    learns: tuple[bool, bool] = (True, True)  # by side: whose turns are learned from
    turns: list[Rollout] = field(default_factory=list)
    result: float | None = None  # to who moved last

    @property
    def side(self) -> int:
        """Whose turn it is; 0 began."""
        return len(self.turns) % 2

    def settle(self) -> None:
        """Each turn earns what its side got in the end."""
        assert self.result is not None
        last = (len(self.turns) - 1) % 2
        for number, turn in enumerate(self.turns):
            turn.reward = self.result if number % 2 == last else -self.result
            turn.scores = {"win": float(turn.reward == WIN), **turn.scores}


@dataclass(slots=True, kw_only=True)
class Arena:
    """Plays matches move by move: all that go on are asked at once."""

    config: SelfPlayConfig
    tokenizer: ChatTokenizer
    frozen: Sampler | None = None
    values: dict[str, float] = field(default_factory=dict)  # of positions, as the optimum has them

    @property
    def game(self) -> Game:
        return GAMES[self.config.game]

    def ask(self, number: int, step: int, sampler: Sampler) -> Collect:
        """A turn waits for the one before: only the first is on its way when this returns."""
        config = self.config
        if self.frozen is None or (number - 1) % config.frozen_every == 0:
            self.frozen = sampler
        other = self.frozen if config.opponent == "frozen" else sampler
        matches = [
            self.begin(step, beginning, place)
            for beginning in range(config.batch_size)
            for place in range(config.group_size)
        ]
        sides = [self.seat(match, sampler, other) for match in matches]

        def collect() -> list[Group]:
            self.play(matches, sides, about={"step": step})
            return make_groups(matches)

        return collect

    def begin(self, step: int, beginning: int, place: int) -> Match:
        """Games of a group begin alike; where the opponent is frozen, sides change by turns."""
        key = f"{step}/{beginning}"
        learner = place % 2
        both = self.config.opponent == "self"
        return Match(
            position=self.game.begin(key.encode(), seed=self.config.seed),
            key=f"{key}/{place}",
            learns=(both or learner == 0, both or learner == 1),
        )

    def seat(self, match: Match, sampler: Sampler, other: Sampler) -> tuple[Sampler, Sampler]:
        first, second = (sampler if learns else other for learns in match.learns)
        return first, second

    def play(
        self, matches: Sequence[Match], sides: Sequence[tuple[Sampler, Sampler]], *, about: About
    ) -> None:
        numbered = list(enumerate(zip(matches, sides, strict=True)))
        while going := [(n, *each) for n, each in numbered if each[0].result is None]:
            waiting = []
            for number, match, seats in going:
                prompt = self.make_prompt(match.position)
                request = self.make_request(prompt, f"{match.key}/{len(match.turns)}")
                asked = {**about, "match": number, "turn": len(match.turns)}
                waiting.append((match, prompt, seats[match.side].sample(request, about=asked)))
            for match, prompt, future in waiting:
                (sequence,) = future.result().sequences
                text = self.tokenizer.decode(sequence.tokens, skip_special=True)
                self.take_turn(match, Rollout.of(prompt, sequence, text))

    def take_turn(self, match: Match, turn: Rollout) -> None:
        """A move that the rules do not allow loses."""
        move = read_move(self.game, match.position, turn.text)
        turn.scores = {"legal": float(move is not None)}
        match.turns.append(turn)
        if move is None:
            match.result = LOSS
        else:
            match.position = self.game.move(match.position, move)
            match.result = self.game.judge(match.position)
        if match.result is not None:
            match.settle()

    def make_prompt(self, position: str) -> Prompt:
        messages = [{"role": "user", "content": self.game.ask(position)}]
        text = self.tokenizer.apply_template(messages, add_generation_prompt=True)
        tokens = self.tokenizer.encode(text)
        return Prompt(number=0, key=b"", prompt_key=b"", messages=messages, tokens=tokens)

    def make_request(self, prompt: Prompt, key: str) -> SampleRequest:
        return SampleRequest(
            prompt=prompt.tokens,
            params=SamplingParams(
                max_tokens=self.config.max_tokens,
                temperature=self.config.temperature,
                seed=draw(key.encode(), seed=self.config.seed, purpose="rollout") % 2**31,
            ),
            with_both_logprobs=self.config.temperature != 1.0,
        )

    def measure(self, sampler: Sampler, step: int) -> dict[str, float]:
        """The share of games won against who moves at random and who makes no mistake. The same
        beginnings each time; the policy begins every second one."""
        return {
            f"win_rate/{name}": self.contest(sampler, name, {"step": step, "against": name})
            for name in OPPONENTS
        }

    def contest(self, sampler: Sampler, name: str, about: About) -> float:
        contests = [
            Contest(match=self.begin(0, number, 0), side=number % 2)
            for number in range(self.config.eval_games)
        ]
        while going := [(n, each) for n, each in enumerate(contests) if not each.is_over]:
            for _, each in going:
                if not each.is_policys_turn:
                    self.answer(each, name)
            self.move_policy([pair for pair in going if not pair[1].is_over], sampler, about)
        return sum(each.is_won for each in contests) / len(contests)

    def answer(self, contest: "Contest", name: str) -> None:
        position, key = contest.match.position, f"{contest.match.key}/{contest.num_moves}"
        if name == "random":
            move = choose_random(self.game, position, key.encode(), seed=self.config.seed)
        else:
            move = choose_best(self.game, position, self.values)
        contest.take(self.game, move)

    def move_policy(
        self, going: Iterable[tuple[int, "Contest"]], sampler: Sampler, about: About
    ) -> None:
        waiting = []
        for number, each in going:
            prompt = self.make_prompt(each.match.position)
            request = self.make_request(prompt, f"{about}/{number}/{each.num_moves}")
            asked = {**about, "match": number, "turn": each.num_moves}
            waiting.append((each, sampler.sample(request, about=asked)))
        for each, future in waiting:
            (sequence,) = future.result().sequences
            text = self.tokenizer.decode(sequence.tokens, skip_special=True)
            each.take(self.game, read_move(self.game, each.match.position, text))


@dataclass(slots=True, kw_only=True)
class Contest:
    """A game of the policy against somebody else. `side`: the policy's; 0 begins."""

    match: Match
    side: int
    num_moves: int = 0

    @property
    def is_over(self) -> bool:
        return self.match.result is not None

    @property
    def is_policys_turn(self) -> bool:
        return self.num_moves % 2 == self.side

    @property
    def is_won(self) -> bool:
        moved_last = (self.num_moves - 1) % 2 == self.side
        return self.match.result == (WIN if moved_last else LOSS)

    def take(self, game: Game, move: int | None) -> None:
        self.num_moves += 1
        if move is None:
            self.match.result = LOSS
            return
        self.match.position = game.move(self.match.position, move)
        self.match.result = game.judge(self.match.position)


def make_groups(matches: Sequence[Match]) -> list[Group]:
    """Turns at one position are compared with each other, whoever played them: all of them could
    have made the same move."""
    by_position: dict[tuple[int, ...], list[Rollout]] = {}
    for match in matches:
        for number, turn in enumerate(match.turns):
            if match.learns[number % 2]:
                by_position.setdefault(tuple(turn.prompt), []).append(turn)
    return [Group(rollouts=turns) for turns in by_position.values()]
