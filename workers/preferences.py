"""A reward model's rewards: within a group, how likely each answer is better than the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from training.data.tokenizer import ChatTokenizer
from training.errors import InvalidInput
from training.model import Future, Sampler
from training.recipes.comparisons import build_messages, encode_question, read_preference
from training.recipes.rollouts import Group, Prompt
from training.types import SampleOutput
from webapp.checkpoints.models import Checkpoint
from webapp.runs.models import Run

Pair = tuple[Future[SampleOutput], Future[SampleOutput]]
About = dict[str, Any]


def find_reward_model(run: Run, name: str) -> Checkpoint:
    """By its id, or by its path as the SDK has it; of the run's own project."""
    rows = Checkpoint.objects.filter(project=run.project)
    found = rows.loadable().find_named(name) or rows.find_named(name)
    if found is None:
        raise InvalidInput(f"there is no checkpoint {name!r:.60} in the run's project")
    if found.deleted_at is not None:
        raise InvalidInput(f"the reward model {found.name} was deleted: name another checkpoint")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """Asks for each pair of a group in both orders: a model may like what it reads first."""

    sampler: Sampler
    tokenizer: ChatTokenizer

    def score(self, about: About, asked: Sequence[tuple[Prompt, Group]]) -> list[list[float]]:
        """All comparisons of all groups are sent before the first answer is waited for."""
        waiting = [
            self.ask({**about, "group": place}, prompt, group)
            for place, (prompt, group) in enumerate(asked)
        ]
        return [
            average(len(group.rollouts), {pair: read_both(each) for pair, each in pairs.items()})
            for (_, group), pairs in zip(asked, waiting, strict=True)
        ]

    def ask(
        self, about: About, prompt: Prompt, group: Group
    ) -> dict[tuple[int, int], tuple[Pair, Pair]]:
        texts = [rollout.text for rollout in group.rollouts]
        return {
            (one, other): (
                self.compare({**about, "pair": [one, other]}, prompt, texts[one], texts[other]),
                self.compare({**about, "pair": [other, one]}, prompt, texts[other], texts[one]),
            )
            for one, other in combinations(range(len(texts)), 2)
        }

    def compare(self, about: About, prompt: Prompt, first: str, second: str) -> Pair:
        sides = [[{"role": "assistant", "content": text}] for text in (first, second)]
        messages = build_messages(prompt.messages, *sides)
        question = encode_question(self.tokenizer, messages)
        one, other = (
            self.sampler.sample(request, about={**about, "label": label})
            for label, request in enumerate(question.make_requests())
        )
        return one, other


def read_both(orders: tuple[Pair, Pair]) -> float:
    """How likely the first of the pair is better, over both orders."""
    forward, backward = (read_preference(*(each.result() for each in pair)) for pair in orders)
    return (forward + 1 - backward) / 2


def average(num_answers: int, won: dict[tuple[int, int], float]) -> list[float]:
    """Each answer's mean over the others."""
    totals = [0.0] * num_answers
    for (one, other), share in won.items():
        totals[one] += share
        totals[other] += 1 - share
    return [total / (num_answers - 1) for total in totals]
