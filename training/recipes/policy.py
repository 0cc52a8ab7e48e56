"""Learning from one's own samples: a generator of steps over the verbs, whatever is sampled.

The order of verbs depends on the config alone, so a driver that begins again finds each at its
place in the log, and each sample by its step.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from training.data.batches import Batch
from training.model import Future, Model, Sampler
from training.recipes.policy_metrics import describe_groups
from training.recipes.rl_config import PolicyConfig
from training.recipes.rollouts import (
    Group,
    Rollout,
    add_ratio_mask,
    make_datum,
    set_advantages,
    spread_advantages,
)
from training.recipes.steps import Order, Steer, Step, follow_config
from training.types import (
    AdamParams,
    Datum,
    ForwardBackwardOutput,
    OptimStepOutput,
    SampleRequest,
    SamplingParams,
)

# The engine then projects only positions with an advantage, and sends no other logprobs back.
FORWARD_CONFIG: Mapping[str, float | str] = {"logprobs": "weighted"}

Collect = Callable[[], list[Group]]  # waits for what was asked, and says what it is worth


class Ask(Protocol):
    """Sends the samples of batch `number`, the one whose last step is `step`."""

    def __call__(self, number: int, step: int, sampler: Sampler) -> Collect: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyStep(Step):
    """A batch that was learned from. `number` is of its last optimizer step."""

    groups: Sequence[Group]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a recipe's samples come from. `publish` saves the weights of now: what samples from
    them; `step` counts the optimizer steps behind them."""

    ask: Ask
    publish: Callable[[int], Future[Sampler]]
    reference: Sampler | None = None  # what the policy is not to leave


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    born: int
    collect: Collect


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """The optimizer steps of one batch, on their way."""

    learning_rate: float
    data: Sequence[Datum]
    gradients: Sequence[Future[ForwardBackwardOutput]]
    updates: Sequence[Future[OptimStepOutput]]


def train(
    model: Model,
    config: PolicyConfig,
    source: Source,
    *,
    num_batches: int,
    steer: Steer = follow_config,
) -> Iterator[PolicyStep]:
    """One step for each batch. With `max_steps_off_policy` the samples of so many batches to come
    are made while this one is learned from."""
    size, ahead = config.num_substeps, config.max_steps_off_policy
    asked: deque[Asked] = deque()
    policy = source.publish(0).result()
    for number in range(1, min(ahead + 1, num_batches) + 1):
        asked.append(Asked(born=0, collect=source.ask(number, number * size, policy)))
    for number in range(1, num_batches + 1):
        groups = collect_groups(asked.popleft(), config)
        order = ask_order(steer, (number - 1) * size + 1)
        step, num_steps = number * size, num_batches * size
        kl_coefficient = choose_kl(config, order)
        measure_reference(source.reference if kl_coefficient else None, groups, {"step": step})
        learned = learn(
            model, groups, config, order, number, num_steps=num_steps, kl_coefficient=kl_coefficient
        )
        saved = source.publish(step)
        yield finish_step(learned, groups, step=step, config=config)
        if number + ahead + 1 <= num_batches:
            to_come = number + ahead + 1
            collect = source.ask(to_come, to_come * size, saved.result())
            asked.append(Asked(born=step, collect=collect))


def collect_groups(asked: Asked, config: PolicyConfig) -> list[Group]:
    groups = asked.collect()
    for group in groups:
        group.born = asked.born
        set_advantages(group, by_std=config.advantage_normalization == "std")
        group.is_dropped = config.remove_constant_reward_groups and group.is_constant
    return groups


def ask_order(steer: Steer, number: int) -> Order:
    """Nothing is on its way here, so there is nothing to settle before wishes are fulfilled."""
    order = steer(number)
    return steer(number) if order.settle else order


def choose_kl(config: PolicyConfig, order: Order) -> float:
    return config.kl_coefficient if order.kl_coefficient is None else order.kl_coefficient


def measure_reference(
    reference: Sampler | None, groups: Sequence[Group], about: Mapping[str, Any]
) -> None:
    """All are asked before the first is waited for."""
    if reference is None:
        return
    waiting = []
    for place, group in enumerate(groups):
        for index, rollout in enumerate(() if group.is_dropped else group.rollouts):
            request = SampleRequest(
                prompt=[*rollout.prompt, *rollout.tokens[:-1], rollout.tokens[-1]],
                params=SamplingParams(max_tokens=1, temperature=0.0),
                prompt_logprobs=True,
                prompt_logprobs_last_n=len(rollout.tokens),
            )
            own = {**about, "group": place, "index": index, "by": "reference"}
            waiting.append((rollout, reference.sample(request, about=own)))
    for rollout, future in waiting:
        logprobs = list(future.result().prompt_logprobs or ())[-len(rollout.tokens) :]
        rollout.reference = [value or 0.0 for value in logprobs]


def make_data(
    groups: Sequence[Group], config: PolicyConfig, *, kl_coefficient: float
) -> list[Datum]:
    """Advantages are divided by the tokens of the batch: the loss is a mean over them."""
    rollouts = [each for group in groups if not group.is_dropped for each in group.rollouts]
    advantages = spread_advantages(rollouts, kl_coefficient=kl_coefficient)
    num_tokens = sum(len(rollout.tokens) for rollout in rollouts)
    data = []
    for rollout, spread in zip(rollouts, advantages, strict=True):
        if any(spread):
            data.append(finish_datum(rollout, spread, config, scale=1 / num_tokens))
    return data


def make_silent(groups: Sequence[Group], config: PolicyConfig) -> Datum:
    rollout = groups[0].rollouts[0]
    return finish_datum(rollout, [0.0] * len(rollout.tokens), config, scale=1.0)


def finish_datum(
    rollout: Rollout, advantages: Sequence[float], config: PolicyConfig, *, scale: float
) -> Datum:
    datum = make_datum(rollout, advantages, scale=scale)
    mask = config.asks_ratio_mask
    return add_ratio_mask(datum, len(rollout.tokens)) if mask else datum


def learn(
    model: Model,
    groups: Sequence[Group],
    config: PolicyConfig,
    order: Order,
    number: int,
    *,
    num_steps: int,
    kl_coefficient: float,
) -> Learned:
    """Where nothing is left to learn from, one answer without any advantage is read, at a learning
    rate of 0: the weights stay, and the log has the same verbs whatever was earned. A replay may
    count otherwise: another KL coefficient, a judge that answers by now.
    """
    data = make_data(groups, config, kl_coefficient=kl_coefficient)
    settings = {**FORWARD_CONFIG, **config.loss_config}
    gradients, updates, rate = [], [], 0.0
    for place in range(config.num_substeps):
        part = data[place :: config.num_substeps]
        index = (number - 1) * config.num_substeps + place
        adam = config.adam_at(index, num_steps=num_steps, learning_rate=order.learning_rate)
        rate = adam.learning_rate
        learned_from = part or [make_silent(groups, config)]
        gradients.append(model.forward_backward(learned_from, config.loss, config=settings))
        updates.append(model.optim_step(adam if part else AdamParams(learning_rate=0.0)))
    return Learned(learning_rate=rate, data=data, gradients=gradients, updates=updates)


def finish_step(
    learned: Learned, groups: Sequence[Group], *, step: int, config: PolicyConfig
) -> PolicyStep:
    outputs = [gradient.result().metrics for gradient in learned.gradients]
    updates = [update.result().metrics for update in learned.updates]
    metrics = {
        **updates[-1],
        "learning_rate": learned.learning_rate,
        "num_tokens": float(sum(len(datum.tokens) for datum in learned.data)),
        **describe_groups(groups, step=step - config.num_substeps),
        **describe_outputs(outputs if learned.data else ()),
    }
    batch = Batch(
        data=tuple(learned.data),
        rows=tuple(group.row for group in groups if group.row is not None),
        epoch=0.0,
        num_tokens=sum(len(datum.tokens) for datum in learned.data),
        num_weighted=0,
    )
    return PolicyStep(number=step, batch=batch, metrics=metrics, is_settled=True, groups=groups)


def describe_outputs(outputs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of all passes of the batch; the loss is their sum, for advantages are divided already."""
    if not outputs:
        return {}
    described = {"loss": sum(output["loss:sum"] for output in outputs)}
    clipped = [output["clipped:mean"] for output in outputs if "clipped:mean" in output]
    if clipped:
        described["clip/share"] = sum(clipped) / len(clipped)
    return described
