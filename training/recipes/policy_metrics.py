"""How a policy fares, in the numbers that are looked at by these names."""

from collections.abc import Mapping, Sequence

import numpy as np

from training.recipes.rollouts import Group, Rollout, find_gaps, find_weights, mean_of


def describe_groups(groups: Sequence[Group], *, step: int) -> dict[str, float]:
    """Of all answers of a batch, dropped ones too; `step`: how many steps the weights had behind
    them that learn from it."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    if not rollouts:
        return {}
    return {
        **describe_rewards(groups, rollouts),
        **describe_lengths(rollouts),
        # What was drawn is as unlikely as it is: a mean over samples of the entropy of a token.
        "entropy": -mean_of([rollout.logprobs for rollout in rollouts]),
        "staleness": float(np.mean([step - group.born for group in groups])),
        **describe_reference(rollouts),
    }


def describe_rewards(groups: Sequence[Group], rollouts: Sequence[Rollout]) -> dict[str, float]:
    rewards = np.array([rollout.reward for rollout in rollouts])
    names = sorted({name for rollout in rollouts for name in rollout.scores})
    return {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std()),
        **{f"reward/{name}": mean_score(rollouts, name) for name in names},
        "frac_reward_zero_std": float(np.mean([group.is_constant for group in groups])),
    }


def mean_score(rollouts: Sequence[Rollout], name: str) -> float:
    return float(np.mean([each.scores[name] for each in rollouts if name in each.scores]))


def describe_lengths(rollouts: Sequence[Rollout]) -> Mapping[str, float]:
    lengths = [len(rollout.tokens) for rollout in rollouts]
    return {
        "completion/length_mean": float(np.mean(lengths)),
        "completion/length_max": float(max(lengths)),
        "completion/truncated_share": float(np.mean([each.is_truncated for each in rollouts])),
    }


def describe_reference(rollouts: Sequence[Rollout]) -> Mapping[str, float]:
    """An estimate of the divergence from the reference: the mean over sampled tokens, where what
    was drawn at another temperature counts as often as the model at 1 would have drawn it."""
    measured = [rollout for rollout in rollouts if rollout.reference is not None]
    if not measured:
        return {}
    gaps = np.concatenate([find_gaps(rollout) for rollout in measured])
    weights = np.concatenate([find_weights(rollout) for rollout in measured])
    total = float(weights.sum())
    return {"kl/reference": float((weights * gaps).sum()) / total if total else 0.0}
