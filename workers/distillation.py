"""Drives distillation by answers, with and without a prompt of the teacher's own."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from training.data.tokenizer import ChatTokenizer
from training.recipes import distillation, sft
from training.recipes.distillation import Lesson, Prompts, Teacher
from training.recipes.distillation_config import DistillationConfig
from training.recipes.rollouts import Prompt
from training.recipes.rollouts import Rollout as Answered
from training.recipes.sft import Prepared
from training.recipes.steps import Step
from webapp.runs.records import Rollout
from webapp.runs.rollouts import MOST_OF_A_STEP, record_rollouts
from workers.drives import Drive
from workers.samplers import RemoteSampler
from workers.teachers import open_teacher, speaks_alike

MOST_MEASURED = 64  # held-out prompts whose answers the teacher reads again


@dataclass(slots=True, kw_only=True, eq=False)
class Distillation(Drive[DistillationConfig]):
    """The teacher answers every prompt before the first step; then it is fine-tuning."""

    tokenizer: ChatTokenizer = field(init=False)
    teacher: Teacher = field(init=False)
    prepared: Prepared = field(init=False)
    teacher_loss: float | None = None

    def prepare(self) -> str:
        self.tokenizer = self.load_tokenizer()
        self.teacher = open_teacher(
            self.run, self.config.teacher, waiter=self.waiter, keep=self.keep
        )
        prompts = distillation.read_prompts(
            self.read_rows(), self.tokenizer, self.teacher, self.config
        )
        asked = len(prompts.train) + len(prompts.held_out)
        self.errands.say(f"The teacher is asked {asked} prompts.", 0)
        lessons, held_out = self.ask(prompts.train), self.ask(prompts.held_out)
        self.prepared = distillation.prepare(lessons, held_out, self.tokenizer, self.config)
        self.num_steps = self.prepared.num_steps
        self.keep_answers([*lessons, *held_out])
        self.measure_teacher(held_out)
        return describe_lessons(self.prepared, prompts)

    def ask(self, prompts: Sequence[Prompt]) -> list[Lesson]:
        return list(distillation.collect_lessons(prompts, self.teacher, self.config))

    def measure_teacher(self, held_out: Sequence[Lesson]) -> None:
        """Only who speaks the student's tokens can be compared with it, token by token."""
        whole = [each for each in held_out if distillation.list_whole(each)]
        if whole and len(whole) <= MOST_MEASURED and self._speaks_alike:
            self.teacher_loss = distillation.measure_teacher(whole, self.tokenizer, self.teacher)

    @property
    def _speaks_alike(self) -> bool:
        return speaks_alike(self.run, self.teacher, self.tokenizer)

    def take_steps(self) -> Iterator[Step]:
        return sft.train(self.model, self.prepared, self.config, steer=self.steer)

    def measure(self) -> Mapping[str, float]:
        if not self.prepared.held_out:
            return {}
        loss = sft.held_out_loss(self.model, self.prepared.held_out)
        above = {} if self.teacher_loss is None else {"teacher/kl": loss - self.teacher_loss}
        return {"held_out_loss": loss, **above}

    def keep_answers(self, lessons: Iterable[Lesson]) -> None:
        """The teacher's first answers, as the rollouts before the first step."""
        rows = [
            self.make_row(place, index, lesson, answer)
            for place, lesson in enumerate(lessons)
            for index, answer in enumerate(lesson.group.rollouts)
        ]
        record_rollouts(self.run, rows[:MOST_OF_A_STEP])

    def make_row(self, place: int, index: int, lesson: Lesson, answer: Answered) -> Rollout:
        sampler = self.teacher.sampler
        assert isinstance(sampler, RemoteSampler)
        weights = sampler.checkpoint or sampler.base_model
        return Rollout(
            run=self.run,
            step=0,
            group=place,
            index=index,
            row=lesson.prompt.number,
            prompt=[dict(message) for message in lesson.prompt.messages],
            completion=answer.text,
            stop_reason="length" if answer.is_truncated else "stop",
            reward=0.0,
            is_dropped=answer not in distillation.list_whole(lesson),
            checkpoint=sampler.checkpoint,
            digest=weights.digest,
        )


def describe_lessons(prepared: Prepared, prompts: Prompts) -> str:
    text = f"{len(prepared.train)} answers to learn from in {prepared.num_steps} steps"
    if prepared.held_out:
        text += f", {len(prepared.held_out)} held out"
    if prepared.dropped:
        text += f"; to {len(prepared.dropped)} prompts no answer came to its end"
    if prompts.dropped:
        text += f"; {len(prompts.dropped)} longer prompts were left out"
    return text + "."
