"""Drives what learns from its own samples: its weights answer at each step, and answers are kept.

The weights that answer are saved in the run's own log, so a driver that begins again finds each
step's weights, samples and numbers where they were.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from training.data.tokenizer import ChatTokenizer
from training.model import Future, Sampler
from training.recipes import policy
from training.recipes.policy import Ask, PolicyStep, Source
from training.recipes.rl_config import PolicyConfig
from training.recipes.rollouts import Group
from training.recipes.rollouts import Rollout as Answered
from training.recipes.steps import Step
from webapp.checkpoints.models import Checkpoint
from webapp.runs.records import Rollout
from webapp.runs.rollouts import MOST_OF_A_STEP, record_rollouts
from workers.describing import split_pieces
from workers.drives import Drive
from workers.remote import RemoteFuture
from workers.samplers import RemoteSampler

POLICY_NAME = "policy-{step:06d}"
POLICY_SECONDS = 600  # what is sampled from stays; while the run is alive its newest ones do too

PolicyT = TypeVar("PolicyT", bound=PolicyConfig)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A sampler of weights that may still be on their way to the disk."""

    step: int
    find: Callable[[float | None], RemoteSampler]

    def result(self, timeout: float | None = None) -> RemoteSampler:
        return self.find(timeout)


@dataclass(slots=True, kw_only=True, eq=False)
class PolicyDrive(Drive[PolicyT], Generic[PolicyT]):
    """One batch of groups after the other."""

    tokenizer: ChatTokenizer = field(init=False)
    num_batches: int = 0  # `prepare` sets it
    newest: Opened = field(init=False)
    last_reward: float | None = None
    published: dict[int, Opened] = field(default_factory=dict)  # those whose answers are awaited

    @abstractmethod
    def find_ask(self) -> Ask:
        """What sends a batch's samples."""

    def take_steps(self) -> Iterator[Step]:
        source = Source(ask=self.find_ask(), publish=self.publish, reference=self.open_reference())
        return policy.train(
            self.model, self.config, source, num_batches=self.num_batches, steer=self.steer
        )

    def find_ttl(self, _step: int) -> int:
        """Seconds for which the weights after this step are kept at least."""
        return POLICY_SECONDS

    def open_sampler(self, checkpoint: Checkpoint | None) -> RemoteSampler:
        return RemoteSampler(
            project=self.run.project,
            run=self.run,
            base_model=self.run.base_model,
            checkpoint=checkpoint,
            waiter=self.waiter,
            keep_going=self.keep,
        )

    def open_start(self) -> RemoteSampler:
        """What the run began with."""
        return self.open_sampler(self.run.parent)

    def open_reference(self) -> RemoteSampler:
        """What the policy is not to leave."""
        return self.open_start()

    def publish(self, step: int) -> Future[Sampler]:
        """Before the first step the weights are those that the run began with: nothing to save."""
        find = self._save(step) if step else lambda _timeout: self.open_start()
        self.newest = Opened(step=step, find=find)
        self.published[step] = self.newest
        return self.newest

    def _save(self, step: int) -> Callable[[float | None], RemoteSampler]:
        name = POLICY_NAME.format(step=step)
        ttl = self.find_ttl(step)
        saved = self.model.save_checkpoint(name, kind="sampler", ttl_seconds=ttl)
        return partial(self._open_saved, saved)

    def _open_saved(self, saved: RemoteFuture[Checkpoint], timeout: float | None) -> RemoteSampler:
        return self.open_sampler(saved.result(timeout))

    def take_step(self, step: Step) -> None:
        assert isinstance(step, PolicyStep)
        self.last_reward = step.metrics.get("reward/mean")
        self.keep_rollouts(step)
        if all(group.is_dropped for group in step.groups):
            text = (
                f"Step {step.number}: in none of its {len(step.groups)} groups did one answer"
                " earn more than another, so nothing was learned from them."
            )
            self.errands.say(text, step.number)
        # super() does not find its class in one with slots.
        Drive.take_step(self, step)

    def sum_up(self) -> str:
        reward = self.last_reward
        return "" if reward is None else f" Its last mean reward was {reward:.4g}."

    def keep_rollouts(self, step: PolicyStep) -> None:
        rows: list[Rollout] = []
        for place, group in enumerate(step.groups):
            if rows and len(rows) + len(group.rollouts) > MOST_OF_A_STEP:
                break
            checkpoint = self.find_checkpoint(group)
            make = partial(self.make_row, step.number, place, group, checkpoint)
            rows += [make(index, each) for index, each in enumerate(group.rollouts)]
        record_rollouts(self.run, rows)
        oldest = min((group.born for group in step.groups), default=0)
        for born in [each for each in self.published if each < oldest]:
            del self.published[born]

    def find_checkpoint(self, group: Group) -> Checkpoint | None:
        """Whose weights answered; None: the base model's own."""
        return self.published[group.born].result().checkpoint

    def make_row(
        self,
        step: int,
        place: int,
        group: Group,
        checkpoint: Checkpoint | None,
        index: int,
        answered: Answered,
    ) -> Rollout:
        return Rollout(
            run=self.run,
            step=step,
            group=place,
            index=index,
            row=group.row,
            prompt=[dict(message) for message in answered.messages],
            completion=answered.text,
            tokens=self.describe_tokens(answered),
            stop_reason="length" if answered.is_truncated else "stop",
            reward=answered.reward,
            rewards=dict(answered.scores),
            advantage=answered.advantage,
            is_dropped=group.is_dropped,
            checkpoint=checkpoint,
            digest=checkpoint.digest if checkpoint else self.run.base_model.digest,
        )

    def describe_tokens(self, answered: Answered) -> Sequence[Mapping[str, object]]:
        pieces = split_pieces(answered.tokens, self.tokenizer)
        tokens = zip(pieces, answered.tokens, answered.logprobs, strict=True)
        return [{"text": text, "id": token, "logprob": value} for text, token, value in tokens]
