"""Drives on-policy distillation: the student's own samples, each token judged by the teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from training.data.tokenizer import ChatTokenizer
from training.errors import InvalidInput
from training.recipes import policy, rl
from training.recipes.distillation import Teacher
from training.recipes.distillation_config import OnPolicyDistillationConfig
from training.recipes.policy import Ask
from training.recipes.policy_metrics import describe_reference
from training.recipes.rl import Prepared, Questions, Scores
from training.recipes.rollouts import Group, Prompt
from training.recipes.steps import Step
from webapp.runs.models import Run
from workers.policy import PolicyDrive
from workers.rl import MOST_HELD_OUT, describe_prompts
from workers.samplers import RemoteSampler
from workers.teachers import open_teacher, speaks_alike

KL = "kl/reference"  # as the policy's steps call it; here the reference is the teacher
OF_REWARDS = ("reward/", "frac_reward_zero_std")  # nothing is graded


@dataclass(slots=True, kw_only=True, eq=False)
class OnPolicyDistillation(PolicyDrive[OnPolicyDistillationConfig]):
    """The reference is the teacher, and to come nearer to it is all there is of a reward."""

    prepared: Prepared = field(init=False)
    questions: Questions = field(init=False)
    teacher: Teacher = field(init=False)

    def prepare(self) -> str:
        self.tokenizer = self.load_tokenizer()
        self.teacher = open_teacher(
            self.run, self.config.teacher, waiter=self.waiter, keep=self.keep
        )
        check_alike(self.run, self.teacher, self.tokenizer)
        self.prepared = rl.prepare(self.read_rows(), self.tokenizer, self.config)
        self.num_batches = self.prepared.num_batches
        self.num_steps = self.num_batches * self.config.num_substeps
        self.questions = Questions(
            prepared=self.prepared,
            config=self.config,
            tokenizer=self.tokenizer,
            reward=grade_nothing,
            weights={},
        )
        return describe_prompts(self.prepared, self.num_steps)

    def find_ask(self) -> Ask:
        return self.questions.ask

    def open_reference(self) -> RemoteSampler:
        sampler = self.teacher.sampler
        assert isinstance(sampler, RemoteSampler)
        return sampler

    def take_step(self, step: Step) -> None:
        """The steps' own numbers say what the policy's do, in the words of distillation."""
        told = {key: step.metrics[key] for key in step.metrics if not key.startswith(OF_REWARDS)}
        if KL in told:
            told["teacher/kl"] = told.pop(KL)
        PolicyDrive.take_step(self, replace(step, metrics=told))

    def measure(self) -> Mapping[str, float]:
        """How far held-out answers of the student are from the teacher, in nats a token."""
        prompts = self.prepared.held_out[:MOST_HELD_OUT]
        if not prompts:
            return {}
        step = self.newest.step
        asked = self.questions.ask_held_out(prompts, self.newest.result(), {"step": step})
        groups = [
            rl.make_group(prompt, sequences, self.tokenizer)
            for prompt, sequences in zip(prompts, asked, strict=True)
        ]
        policy.measure_reference(self.teacher.sampler, groups, {"step": step, "held_out": True})
        found = describe_reference([each for group in groups for each in group.rollouts])
        return {"held_out/teacher_kl": found[KL]}


def grade_nothing(_step: int, asked: Sequence[tuple[Prompt, Group]]) -> list[Scores]:
    return [[{} for _ in group.rollouts] for _, group in asked]


def check_alike(run: Run, teacher: Teacher, own: ChatTokenizer) -> None:
    if not speaks_alike(run, teacher, own):
        raise InvalidInput(
            f"the teacher {run.config['teacher']} has another tokenizer than the student: it cannot"
            " judge single tokens; let it answer instead, with off-policy distillation"
        )
