"""The failures that are silent elsewhere: what each is called, what shows it, and what to do."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How a diagnostic stands with a run."""

    FOUND = "found"
    CLEAR = "clear"  # looked at, nothing found
    WAITING = "waiting"  # it applies, and there is too little to look at yet
    NOT_APPLICABLE = "not_applicable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostic:
    """`word` is what a badge says; `seen_by` how it is seen, `advice` what to do about it."""

    key: str
    title: str
    word: str
    seen_by: str
    advice: str


DIAGNOSTICS: tuple[Diagnostic, ...] = (
    Diagnostic(
        key="sequential_client",
        title="Sequential client",
        word="sequential",
        seen_by="The optim_step arrives only after the result of its forward_backward was there.",
        advice="Submit forward_backward and optim_step before waiting for either, and the next"
        " batch before the last result: the device has no pause then.",
    ),
    Diagnostic(
        key="stale_sampler",
        title="Stale sampler",
        word="stale sampler",
        seen_by="Samples are drawn from a snapshot older than the newest ones that were saved.",
        advice="Create the sampling client again after each save: one that is kept goes on with"
        " the weights it was opened on.",
    ),
    Diagnostic(
        key="sampler_trainer_disagree",
        title="Sampler and trainer disagree",
        word="sampler disagrees",
        seen_by="The log-probabilities that samples came with, against the learner's own when it"
        " first learns from them.",
        advice="Look at the renderer or chat template that made the prompts, at how old the"
        " sampled weights are, at a temperature other than 1 that the loss was not told, and at the"
        " sampler's precision.",
    ),
    Diagnostic(
        key="zero_signal_groups",
        title="Groups without a signal",
        word="no signal",
        seen_by="The share of answers whose advantages are all zero.",
        advice="Drop groups whose answers all have the same reward, and use harder prompts, or"
        " easier ones where nothing succeeds.",
    ),
    Diagnostic(
        key="checkpoint_will_expire",
        title="A checkpoint will expire",
        word="expires soon",
        seen_by="Little time, a day by default, is left of a checkpoint that is the run's best,"
        " that another run began from, or that is served.",
        advice="Keep it.",
    ),
    Diagnostic(
        key="non_finite_or_spiking",
        title="Non-finite or spiking",
        word="spiking",
        seen_by="The loss and the gradient norm against the steps before, and steps that were"
        " refused because their gradients were not finite.",
        advice="Look at what was in the batch, lower the learning rate, or clip gradients"
        " (grad_clip_norm 1).",
    ),
    Diagnostic(
        key="memorising",
        title="Memorising",
        word="memorising",
        seen_by="The training loss falls while the held-out loss rises, evaluation after"
        " evaluation.",
        advice="Stop here and branch from the best checkpoint: more steps learn these rows by"
        " heart.",
    ),
    Diagnostic(
        key="reward_hacking",
        title="Reward hacking",
        word="reward hacking",
        seen_by="Length against reward, repeated phrases, rewards for the format alone, and"
        " unreadable characters in rewarded answers.",
        advice="Read the answers that show it, and change the reward so that they earn nothing.",
    ),
    Diagnostic(
        key="off_policy",
        title="Off-policy",
        word="off-policy",
        seen_by="How many optimizer steps old the samples are that a step learns from, and the"
        " share of tokens whose ratio is clipped.",
        advice="Bound how old samples may be, make fewer steps of one batch, or use ppo or cispo,"
        " which bound the ratio.",
    ),
    Diagnostic(
        key="export_differs",
        title="Export differs",
        word="export differs",
        seen_by="The log-probabilities of an exported folder, loaded again, and those of a served"
        " copy, against the trainer's.",
        advice="Do not use that copy. Save the checkpoint again and export that, or restore its"
        " files from a backup.",
    ),
)
BY_KEY: Mapping[str, Diagnostic] = {each.key: each for each in DIAGNOSTICS}
