"""A reward model's rewards within a group: mean shares of wins, whatever is read first."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.training.recipes.learning import TINY, Done
from training.data.tokenizer import ChatTokenizer
from training.model import Future
from training.recipes.rollouts import Group, Prompt, Rollout
from training.types import SampleOutput, SampleRequest
from workers.preferences import Preferences, average

TOKENIZER = ChatTokenizer.load(TINY)


@dataclass
class LongerIsBetter:
    """Finds the longer answer better, and whatever it reads first a little too."""

    asked: list[Mapping[str, Any]] = field(default_factory=list)

    def sample(self, request: SampleRequest, *, about: Mapping[str, Any]) -> Future[SampleOutput]:
        self.asked.append(about)
        text = TOKENIZER.decode(list(request.prompt), skip_special=True)
        first, second = text.split("A: ")[1].split("\n\nB: ")
        lead = len(first) - len(second.split("\n\n")[0]) + 0.5
        sign = 1 if about["label"] == 0 else -1
        return Done(SampleOutput(sequences=[], prompt_logprobs=[None, sign * lead / 2]))


def make_group(*texts: str) -> Group:
    rollouts = [
        Rollout(prompt=(1,), tokens=(2,), logprobs=(-1.0,), text=text, is_truncated=False)
        for text in texts
    ]
    return Group(rollouts=rollouts)


PROMPT = Prompt(
    number=1,
    key=b"1",
    prompt_key=b"1",
    messages=[{"role": "user", "content": "What is 1 + 1?"}],
    tokens=(1,),
)


def test_an_answers_reward_is_its_mean_share_of_wins() -> None:
    # 0 beats 1 with 0.9 and 2 with 0.6; 1 beats 2 with 0.25.
    won = {(0, 1): 0.9, (0, 2): 0.6, (1, 2): 0.25}
    assert average(3, won) == pytest.approx([0.75, 0.175, 0.575])


def test_each_pair_is_asked_in_both_orders_and_the_order_does_not_count() -> None:
    model = LongerIsBetter()
    group = make_group("12", "1", "12")
    ((first, second, third),) = Preferences(sampler=model, tokenizer=TOKENIZER).score(
        {"step": 4}, [(PROMPT, group)]
    )
    assert len(model.asked) == 3 * 2 * 2
    assert len({str(about) for about in model.asked}) == 12
    sure, unsure = (1 / (1 + math.exp(-lead)) for lead in (1.5, 0.5))
    won = (sure + unsure) / 2  # the longer one read first, and read second
    assert first == pytest.approx((won + 0.5) / 2)
    assert third == pytest.approx(first)
    assert second == pytest.approx(1 - won)
