"""The launch form of self-play: which game, against whom, and how the policy learns."""

from typing import Any, ClassVar

from django import forms

from training.recipes.games import GAMES
from webapp.runs.rl_forms import PolicyForm

GAME_LABELS = {
    "nim": "Nim: take 1, 2 or 3 stones, the last one wins",
    "tic_tac_toe": "Tic-tac-toe: three in a row",
}
OPPONENTS = [
    ("self", "Itself, with the newest weights"),
    ("frozen", "Itself, as it was a while ago"),
]


class SelfPlayForm(PolicyForm):
    """No dataset: the games are the data."""

    GAME = ("game", "opponent", "frozen_every", "eval_games")
    OWN = (*GAME, *PolicyForm.POLICY)
    TITLE = "Game and policy"
    WORDS: ClassVar = {"batch_size": {"help_text": "Beginnings of games that a step plays."}}

    game = forms.ChoiceField(choices=[(name, GAME_LABELS[name]) for name in GAMES], initial="nim")
    opponent = forms.ChoiceField(
        choices=OPPONENTS,
        initial="self",
        help_text="Against an older self, only the turns of the newest weights are learned from.",
    )
    frozen_every = forms.IntegerField(
        label="Batches until a new opponent", initial=10, min_value=1, max_value=10_000,
        help_text="Only where the opponent is an older self.",
    )  # fmt: skip
    eval_games = forms.IntegerField(
        label="Games of an evaluation", initial=64, min_value=2, max_value=1000,
        help_text="Against a random opponent, and as many against one without mistakes.",
    )  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["length_unit"].choices = [("steps", "steps")]  # type: ignore[attr-defined]
        self.fields["length_unit"].initial = "steps"
        self.fields["length"].initial = 50
        self.fields["rollout_tokens"].initial = 8
        self.fields["held_out_share"].initial = 0
        self.fields["evaluate_every"].label = "Contests every"

    def make_own(self) -> dict[str, Any]:
        return {**super().make_own(), **{name: self.cleaned_data[name] for name in self.GAME}}
