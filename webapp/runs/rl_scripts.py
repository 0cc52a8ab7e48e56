"""The program on the tinker SDK that does the same as a reinforcement learning run."""

from collections.abc import Mapping, Sequence
from typing import Any

from training.recipes.rl_config import PolicyConfig, RlConfig
from webapp.runs.scripts import SCHEDULE, Program, write_head, write_order

WRITTEN: Mapping[str, str] = {
    "exact_match": "float({text}.strip() == {target}.strip())",
    "contains": "float({target}.strip() in {text})",
    "numeric": "is_near(text, target, {tolerance!r})",
    "regex": "float(re.search({pattern}, text{flags}) is not None)",
}


def write_rl(program: Program) -> str:
    """Empty where a grader needs what a program on the SDK does not have, or where batches are
    sampled ahead."""
    config = program.config
    assert isinstance(config, RlConfig)
    reward = write_reward(config.graders)
    if not reward or config.max_steps_off_policy:
        return ""
    head = write_head(
        program,
        imports="import re\n\nimport tinker",
        group_size=config.group_size,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        loss=config.loss,
        loss_config=config.loss_config or None,
        num_substeps=config.num_substeps,
        kl_coefficient=config.kl_coefficient,
        drop_constant=config.remove_constant_reward_groups,
    )
    penalty = write_penalty(config, name_start(program)) if config.kl_coefficient else ""
    loop = LOOP.replace("ADVANTAGES", SPREAD if config.kl_coefficient else PLAIN)
    by_std = config.advantage_normalization == "std"
    parts = RL.replace("MASK", MASK if config.asks_ratio_mask else "")
    parts = parts.replace("SCALE", STD if by_std else "1.0")
    # Last: what people have written stays as it is.
    return (
        head
        + write_order(program.config)
        + SCHEDULE
        + parts.replace("REWARD", reward)
        + penalty
        + loop
    )


def write_penalty(config: PolicyConfig, reference: str) -> str:
    """What was drawn at another temperature is read again: the reference knows none."""
    own = DRAWN if config.temperature == 1.0 else READ_AGAIN
    return PENALTY.replace("OWN", own).replace("REFERENCE", reference)


def write_reward(graders: Sequence[Mapping[str, Any]]) -> str:
    """A weighted sum of expressions over `text` and `target`; empty: one cannot be written so."""
    if any(each["name"] not in WRITTEN or each.get("column") for each in graders):
        return ""
    return " + ".join(write_grader(each) for each in graders)


def write_grader(grader: Mapping[str, Any]) -> str:
    folded = ".casefold()" if grader.get("ignore_case") else ""
    pattern = grader.get("pattern")
    written = WRITTEN[grader["name"]].format(
        text=f"text{folded}",
        target=f"target{folded}",
        tolerance=grader.get("tolerance", 1e-6),
        pattern="target" if pattern is None else repr(pattern),
        flags=", re.IGNORECASE" if grader.get("ignore_case") else "",
    )
    return f"{grader['weight']!r} * {written}"


def name_start(program: Program) -> str:
    """What the run begins with, as the SDK's create_sampling_client takes it."""
    if program.parent_path:
        return f"model_path={program.parent_path!r}"
    return f"base_model={program.base_model!r}"


MASK = """
            "sequence_ratio_mask": before + [1.0] * len(advantages),"""
STD = "(sum((each - mean) ** 2 for each in earned) / len(earned)) ** 0.5 + 1e-6"
RL = '''

def find_number(text):
    found = re.findall(r"-?\\d+(?:\\.\\d+)?", text.replace(",", ""))
    return float(found[-1]) if found else None


def is_near(text, target, tolerance):
    found, wanted = find_number(text), find_number(target)
    return float(found is not None and abs(found - wanted) <= tolerance)


def reward(text, target):
    return REWARD


def read_rows():
    """The key, the prompt's tokens and the reference answer of each row."""
    for line in open(ROWS, encoding="utf-8"):
        row = json.loads(line)
        asked = row.get("prompt") or row.get("question")
        messages = row.get("messages") or [{"role": "user", "content": asked}]
        key = hash_row(messages)
        target = row.get("target", row.get("completion"))
        if messages[-1]["role"] == "assistant":
            target = messages[-1]["content"] if target is None else target
            messages = messages[:-1]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        tokens = tokenizer.encode(text, add_special_tokens=False)
        if len(tokens) + MAX_TOKENS < (MAX_LENGTH or math.inf):
            yield key, tokens, str("" if target is None else target)


def make_seed(step, place):
    key = f"{step}/{place}".encode()
    return int.from_bytes(draw("rollout", key), "big") % 2**31


def ask(sampler, step, batch):
    """Sends all prompts before it waits for the first group of answers."""
    return [
        sampler.sample(
            tinker.ModelInput.from_ints(prompt),
            GROUP_SIZE,
            tinker.SamplingParams(
                max_tokens=MAX_TOKENS, temperature=TEMPERATURE, seed=make_seed(step, place)
            ),
        )
        for place, (_, prompt, _) in enumerate(batch)
    ]


def compare(sequences, target):
    """What each answer earns, and its advantage over the group."""
    texts = [tokenizer.decode(each.tokens, skip_special_tokens=True) for each in sequences]
    earned = [reward(text, target) for text in texts]
    mean = sum(earned) / len(earned)
    scale = SCALE
    is_constant = max(earned) - min(earned) < 1e-12
    return earned, [0.0 if is_constant else (each - mean) / scale for each in earned]


def make_datum(prompt, sequence, advantages):
    tokens, before = prompt + list(sequence.tokens), [0.0] * (len(prompt) - 1)
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tokens[1:],
            "logprobs": before + list(sequence.logprobs),
            "advantages": before + advantages,MASK
        },
    )
'''
PENALTY = '''

reference = tinker.ServiceClient().create_sampling_client(REFERENCE)


def read_logprobs(model, learned):
    """Of the sampled tokens, at temperature 1."""
    asked = [
        model.compute_logprobs(tinker.ModelInput.from_ints(prompt + list(sequence.tokens)))
        for prompt, sequence, _ in learned
    ]
    return [future.result()[len(prompt):] for (prompt, _, _), future in zip(learned, asked)]


def spread(learned, policy):
    """A token that the reference finds less likely than most, against the policy, loses by it."""
    gaps = [
        [own - other for own, other in zip(*both)]
        for both in zip(OWN, read_logprobs(reference, learned))
    ]
    mean = sum(map(sum, gaps)) / max(1, sum(map(len, gaps)))
    return [
        [advantage + KL_COEFFICIENT * (mean - gap) for gap in own]
        for (_, _, advantage), own in zip(learned, gaps)
    ]
'''
DRAWN = "[sequence.logprobs for _, sequence, _ in learned]"
READ_AGAIN = "read_logprobs(policy, learned)"
PLAIN = "[[advantage] * len(sequence.tokens) for _, sequence, advantage in learned]"
SPREAD = "spread(learned, sampler)"
LOOP = """

rows = [row for row in read_rows() if not is_held_out(row[0])]
STEPS = STEPS and math.ceil(STEPS / NUM_SUBSTEPS)
for number, num_batches, batch in make_batches(rows):
    step, num_steps = number * NUM_SUBSTEPS, num_batches * NUM_SUBSTEPS
    sampler = client.save_weights_and_get_sampling_client()
    learned, rewards = [], []
    for (_, prompt, target), future in zip(batch, ask(sampler, step, batch)):
        sequences = future.result().sequences
        earned, advantages = compare(sequences, target)
        rewards += earned
        if any(advantages) or not DROP_CONSTANT:
            learned += [(prompt, *each) for each in zip(sequences, advantages)]
    num_tokens = sum(len(sequence.tokens) for _, sequence, _ in learned)
    data = [
        make_datum(prompt, sequence, [each / num_tokens for each in own])
        for (prompt, sequence, _), own in zip(learned, ADVANTAGES)
        if any(own)
    ]
    told = {"step": step, "reward": sum(rewards) / len(rewards), "datums": len(data)}
    for substep in range(NUM_SUBSTEPS):
        part = data[substep::NUM_SUBSTEPS]
        if part:
            gradient = client.forward_backward(part, LOSS, LOSS_CONFIG)
            update = client.optim_step(make_adam(step - NUM_SUBSTEPS + substep + 1, num_steps))
            told["loss"] = gradient.result().metrics["loss:sum"]
            update.result()
    print(json.dumps(told), flush=True)
    if step == num_steps or is_due(CHECKPOINT_EVERY, step, num_steps):
        client.save_state(f"step-{step:06d}").result()
"""
