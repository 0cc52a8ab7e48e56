"""Drives reinforcement learning with verifiable rewards."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from statistics import fmean

from training.data.tokenizer import ChatTokenizer
from training.recipes import rl
from training.recipes.grading import Answer
from training.recipes.policy import Ask
from training.recipes.rl import Prepared, Questions, Scores
from training.recipes.rl_config import PREFERENCE, RlConfig, is_preference
from training.recipes.rollouts import Group, Prompt
from webapp.runs.models import LogLine
from workers.grade import Graded, grade_with_notes
from workers.judge import open_judge
from workers.policy import PolicyDrive
from workers.preferences import Preferences, find_reward_model

MOST_HELD_OUT = 64  # prompts that a measurement asks


@dataclass(slots=True, kw_only=True, eq=False)
class Rl(PolicyDrive[RlConfig]):
    """Prompts of a dataset, answered in groups and graded."""

    prepared: Prepared = field(init=False)
    questions: Questions = field(init=False)
    preferences: Preferences | None = None  # opened when it is first asked
    judges: dict[str, str] = field(default_factory=dict)  # the digests that answered last
    told: set[str] = field(default_factory=set)  # graders of which it was said what they lack

    def prepare(self) -> str:
        self.tokenizer = self.load_tokenizer()
        self.prepared = rl.prepare(self.read_rows(), self.tokenizer, self.config)
        self.num_batches = self.prepared.num_batches
        self.num_steps = self.num_batches * self.config.num_substeps
        self.questions = Questions(
            prepared=self.prepared,
            config=self.config,
            tokenizer=self.tokenizer,
            reward=self.reward,
            weights={grader["name"]: grader["weight"] for grader in self.config.graders},
        )
        return describe_prompts(self.prepared, self.num_steps)

    def find_ask(self) -> Ask:
        return self.questions.ask

    def reward(
        self, step: int, asked: Sequence[tuple[Prompt, Group]], *, part: str = "step"
    ) -> list[Scores]:
        """All answers are graded at once: a judge then reads them side by side. `part` tells the
        comparisons of held-out prompts from those of the same step's batch."""
        answers = [
            make_answer(prompt, each.text) for prompt, group in asked for each in group.rollouts
        ]
        graders = [each for each in self.config.graders if not is_preference(each)]
        judge = partial(
            open_judge,
            project=self.run.project,
            run=self.run,
            waiter=self.waiter,
            keep_going=self.keep,
        )
        found = grade_with_notes(graders, answers, judge=judge, keep_going=self.keep)
        self.tell_ungraded(step, found)
        self.tell_judges(step, found)
        graded = iter(found)
        scores = [[next(graded).scores for _ in group.rollouts] for _, group in asked]
        for reward_model in filter(is_preference, self.config.graders):
            preferences = self.open_reward_model(reward_model["checkpoint"])
            preferred = preferences.score({part: step, "by": PREFERENCE}, asked)
            for of_group, values in zip(scores, preferred, strict=True):
                for each, value in zip(of_group, values, strict=True):
                    each[PREFERENCE] = value
        return scores

    def tell_ungraded(self, step: int, graded: Sequence[Graded]) -> None:
        """Who could not be graded earns nothing by that grader. Once: the next steps' are alike."""
        failed = Counter(name for each in graded for name in each.errors)
        for name in sorted(failed.keys() - self.told):
            self.told.add(name)
            why = next(each.errors[name] for each in graded if name in each.errors)
            text = (
                f"Step {step}: {name} could not grade {failed[name]} of {len(graded)} answers,"
                f" which earn nothing by it: {why[:300].rstrip('.')}."
            )
            self.errands.say(text, step, LogLine.Level.WARNING)

    def tell_judges(self, step: int, graded: Sequence[Graded]) -> None:
        """Whose weights give the reward: at the first step, and when they are others."""
        for name, digest in sorted({pair for each in graded for pair in each.judges.items()}):
            if self.judges.get(name) != digest:
                self.judges[name] = digest
                self.errands.say(f"From step {step} on {name} is the weights {digest}.", step)

    def open_reward_model(self, name: str) -> Preferences:
        """Its weights may be of another base model than those that learn."""
        if self.preferences is None:
            checkpoint = find_reward_model(self.run, name)
            sampler = self.open_sampler(checkpoint)
            self.preferences = Preferences(
                sampler=replace(sampler, base_model=checkpoint.base_model),
                tokenizer=ChatTokenizer.load(checkpoint.base_model.path),
            )
        return self.preferences

    def measure(self) -> Mapping[str, float]:
        """The mean reward of held-out prompts, each answered once as rollouts are. A reward model
        only compares: it is shown what the weights that the run began with had answered."""
        prompts = self.prepared.held_out[:MOST_HELD_OUT]
        if not prompts:
            return {}
        step = self.newest.step
        ask = self.questions.ask_held_out
        asked = [ask(prompts, self.newest.result(), {"step": step})]
        if any(is_preference(each) for each in self.config.graders):
            asked.append(ask(prompts, self.open_start(), {"begun_with": True}))
        groups = [
            rl.make_group(prompt, list(chain(*answers)), self.tokenizer)
            for prompt, *answers in zip(prompts, *asked, strict=True)
        ]
        apart = replace(self.questions, reward=partial(self.reward, part="held_out"))
        apart.grade(step, prompts, groups)
        return {"held_out/reward": fmean(group.rollouts[0].reward for group in groups)}


def make_answer(prompt: Prompt, text: str) -> Answer:
    return Answer(
        messages=prompt.messages,
        completion=text,
        target=prompt.target,
        metadata=prompt.metadata,
    )


def describe_prompts(prepared: Prepared, num_steps: int) -> str:
    text = f"{len(prepared.train)} prompts to learn from in {num_steps} steps"
    if prepared.held_out:
        text += f", {len(prepared.held_out)} held out"
    if prepared.dropped:
        text += f"; {len(prepared.dropped)} longer ones were left out"
    return text + "."
