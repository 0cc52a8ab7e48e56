"""The programs on the tinker SDK that do the same as distillation runs."""

from training.recipes.distillation_config import DistillationConfig, OnPolicyDistillationConfig
from webapp.runs.rl_scripts import LOOP, MASK, RL, SPREAD, name_start, write_penalty
from webapp.runs.scripts import (
    ENCODE,
    MAKE_DATA,
    SCHEDULE,
    SFT_STEPS,
    Program,
    write_head,
    write_order,
)


def write_on_policy(program: Program) -> str:
    """Empty where batches are sampled ahead. The teacher takes the reference's place."""
    config = program.config
    assert isinstance(config, OnPolicyDistillationConfig)
    if config.max_steps_off_policy:
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
        drop_constant=False,
    )
    parts = RL.replace("REWARD", "0.0  # to come nearer to the teacher is all there is")
    parts = parts.replace("MASK", MASK if config.asks_ratio_mask else "").replace("SCALE", "1.0")
    penalty = write_penalty(config, program.teacher or name_start(program))
    return (
        head
        + write_order(program.config)
        + SCHEDULE
        + parts
        + penalty
        + LOOP.replace("ADVANTAGES", SPREAD)
    )


def write_distillation(program: Program) -> str:
    config = program.config
    assert isinstance(config, DistillationConfig)
    head = write_head(
        program,
        teacher_prompt=config.teacher_prompt,
        answers_per_prompt=config.answers_per_prompt,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
    )
    lessons = LESSONS.replace("NAMED", program.teacher or name_start(program))
    return (
        head
        + write_order(program.config)
        + SCHEDULE
        + ENCODE
        + lessons
        + MAKE_DATA
        + SPLIT
        + SFT_STEPS
    )


LESSONS = '''

teacher = tinker.ServiceClient().create_sampling_client(NAMED)


def read_prompts():
    """The key of each row, and its messages up to the last answer."""
    for line in open(ROWS, encoding="utf-8"):
        row = json.loads(line)
        asked = row.get("prompt") or row.get("question")
        messages = row.get("messages") or [{"role": "user", "content": asked}]
        key = hash_row(messages)
        yield key, messages[:-1] if messages[-1]["role"] == "assistant" else messages


def add_prompt(messages):
    if not TEACHER_PROMPT:
        return messages
    if messages[0]["role"] == "system":
        joined = TEACHER_PROMPT + "\\n\\n" + messages[0]["content"]
        return [{**messages[0], "content": joined}, *messages[1:]]
    return [{"role": "system", "content": TEACHER_PROMPT}, *messages]


def ask_teacher(key, messages):
    text = render(add_prompt(messages), prompt=True)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    seed = int.from_bytes(draw("lesson", key), "big") % 2**31
    params = tinker.SamplingParams(max_tokens=MAX_TOKENS, temperature=TEMPERATURE, seed=seed)
    return teacher.sample(tinker.ModelInput.from_ints(tokens), ANSWERS_PER_PROMPT, params)


def read_lessons(prompts):
    """Answers that were cut off teach nothing."""
    waiting = [(messages, ask_teacher(key, messages)) for key, messages in prompts]
    for messages, future in waiting:
        for sequence in future.result().sequences:
            text = tokenizer.decode(sequence.tokens, skip_special_tokens=True)
            if sequence.stop_reason == "stop" and text.strip():
                whole = [*messages, {"role": "assistant", "content": text}]
                tokens, weights, _ = encode(whole, [len(messages)])
                yield hash_row(whole), tokens, weights
'''
SPLIT = """

prompts = list(read_prompts())
train = list(read_lessons([each for each in prompts if not is_held_out(each[0])]))
held_out = list(read_lessons([each for each in prompts if is_held_out(each[0])]))
"""
