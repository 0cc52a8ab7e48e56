"""The launch forms of distillation: who teaches, and what the student sees."""

from typing import Any, ClassVar

from django import forms

from webapp.accounts.models import Actor
from webapp.runs.forms import LaunchForm
from webapp.runs.rl_forms import PolicyForm
from webapp.runs.teachers import offer_teachers

OF_REWARDS = ("remove_constant_reward_groups", "advantage_normalization")


def choose_teacher(form: LaunchForm, actor: Actor, *, empty: str = "") -> forms.ChoiceField:
    """The field, with who may teach; the first of them is chosen."""
    field = form.fields["teacher"]
    assert isinstance(field, forms.ChoiceField)
    offered = offer_teachers(actor, empty=empty)
    field.choices = offered
    field.initial = offered[0][0] if offered else None
    return field


class OnPolicyDistillationForm(PolicyForm):
    """The student samples, the teacher judges each token."""

    POLICY = tuple(name for name in PolicyForm.POLICY if name not in OF_REWARDS)
    OWN = ("teacher", *POLICY)
    TITLE = "Teacher and rollouts"

    teacher = forms.ChoiceField(
        help_text="Says how likely it finds each token of the student's answers. It reads the same"
        " tokens as the student."
    )

    def __init__(self, *args: Any, actor: Actor, **kwargs: Any) -> None:
        super().__init__(*args, actor=actor, **kwargs)
        choose_teacher(self, actor)
        for name in OF_REWARDS:
            del self.fields[name]
        self.fields["group_size"].initial = 4
        self.fields["group_size"].help_text = "Answers to each prompt."
        self.fields["kl_coefficient"].initial = 1
        self.fields["kl_coefficient"].help_text = "How much a nat of distance to the teacher costs."

    def make_own(self) -> dict[str, Any]:
        own = {"teacher": self.cleaned_data["teacher"]}
        return {**own, **super().make_own()}


class DistillationForm(LaunchForm):
    """A teacher answers first; the student learns from its answers."""

    RENAMED: ClassVar[dict[str, str]] = {
        "answer_tokens": "max_tokens",
        "answer_temperature": "temperature",
    }

    teacher = forms.ChoiceField(required=False)
    answers_per_prompt = forms.IntegerField(
        label="Answers to each prompt", initial=1, min_value=1, max_value=64
    )
    answer_tokens = forms.IntegerField(
        label="Longest answer of the teacher", initial=256, min_value=1, max_value=32_768,
        help_text="Tokens. Answers that are cut off are not learned from.",
    )  # fmt: skip
    answer_temperature = forms.FloatField(
        label="Temperature of the teacher", initial=1, min_value=0, max_value=10,
        help_text="1: as the teacher is; 0: its likeliest answer.",
    )  # fmt: skip

    def make_own(self) -> dict[str, Any]:
        return {self.RENAMED.get(name, name): value for name, value in super().make_own().items()}


class OffPolicyDistillationForm(DistillationForm):
    """A stronger model teaches."""

    OWN = ("teacher", "answers_per_prompt", "answer_tokens", "answer_temperature")
    TITLE = "Teacher"

    def __init__(self, *args: Any, actor: Actor, **kwargs: Any) -> None:
        super().__init__(*args, actor=actor, **kwargs)
        field = choose_teacher(self, actor)
        field.required = True
        field.help_text = "Answers every prompt of the dataset; the student learns to answer so."


class PromptDistillationForm(DistillationForm):
    """The same model teaches, with a prompt that the student does without."""

    OWN = ("teacher_prompt", "teacher", *OffPolicyDistillationForm.OWN[1:])
    TITLE = "Prompt"

    teacher_prompt = forms.CharField(
        label="Prompt to take to heart",
        initial="Answer in one short sentence.",
        widget=forms.Textarea(attrs={"rows": 6}),
        help_text="Stands before every question to the teacher, as a system message. The student"
        " learns to answer as if it stood there.",
    )

    def __init__(self, *args: Any, actor: Actor, **kwargs: Any) -> None:
        super().__init__(*args, actor=actor, **kwargs)
        choose_teacher(self, actor, empty="The weights that the run begins with")
