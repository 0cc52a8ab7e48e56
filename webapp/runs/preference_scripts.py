"""The programs on the tinker SDK of the methods that learn from preference pairs."""

from training.recipes.dpo_config import DpoConfig
from webapp.runs.scripts import ENCODE, SCHEDULE, Program, write_head, write_order

TORCH = "import tinker\nimport torch"


def write_dpo(program: Program) -> str:
    config = program.config
    assert isinstance(config, DpoConfig)
    head = write_head(program, imports=TORCH, beta=config.beta, overlong=config.overlong)
    return head + write_order(program.config) + SCHEDULE + ENCODE + PAIRS + DPO


def write_reward_model(program: Program) -> str:
    return (
        write_head(program) + write_order(program.config) + SCHEDULE + ENCODE + PAIRS + REWARD_MODEL
    )


PAIRS = '''

def as_messages(side):
    return [{"role": "assistant", "content": side}] if isinstance(side, str) else side


def read_pairs():
    """The key of each, its prompt, the chosen answer and the rejected one."""
    for line in open(ROWS, encoding="utf-8"):
        row = json.loads(line)
        prompt = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
        chosen, rejected = as_messages(row["chosen"]), as_messages(row["rejected"])
        yield hash_row([prompt, chosen, rejected]), prompt, chosen, rejected
'''
DPO = """

def encode_side(prompt, side):
    learned = [at for at, message in enumerate(side, len(prompt)) if message["role"] == "assistant"]
    return encode([*prompt, *side], learned)


def encode_pairs():
    for key, prompt, chosen, rejected in read_pairs():
        sides = [encode_side(prompt, side) for side in (chosen, rejected)]
        is_cut = any(side[2] for side in sides)
        has_answers = all(any(weights[1:]) for _, weights, _ in sides)
        is_pair = has_answers and sides[0][0] != sides[1][0]
        if is_pair and not (is_cut and OVERLONG == "drop"):
            yield key, *(make_datum(tokens, weights) for tokens, weights, _ in sides)


def weigh(datum, logprobs):
    return torch.dot(logprobs, datum.loss_fn_inputs["weights"].to_torch())


def sum_logprobs(data):
    outputs = client.forward(data, "cross_entropy").result().loss_fn_outputs
    logprobs = [output["logprobs"].to_torch() for output in outputs]
    return [weigh(*each).item() for each in zip(data, logprobs)]


def list_data(pairs):
    return [side for _, chosen, rejected in pairs for side in (chosen, rejected)]


def find_margins(pairs, sums):
    before = torch.tensor([reference[key] for key, _, _ in pairs])
    rewards = BETA * (sums.reshape(-1, 2) - before)
    return rewards[:, 0] - rewards[:, 1]


pairs = list(encode_pairs())
sums = sum_logprobs(list_data(pairs))  # of the weights that the run begins with
reference = {key: sums[2 * at : 2 * at + 2] for at, (key, _, _) in enumerate(pairs)}
held_out = [pair for pair in pairs if is_held_out(pair[0])]
for step, num_steps, batch in make_batches([pair for pair in pairs if not is_held_out(pair[0])]):

    def dpo_loss(data, logprobs):
        margins = find_margins(batch, torch.stack([weigh(*each) for each in zip(data, logprobs)]))
        accuracy = (margins > 0).float().mean().item()
        loss = -torch.nn.functional.logsigmoid(margins).mean()
        return loss, {"dpo/loss": loss.item(), "dpo/accuracy": accuracy}

    gradient = client.forward_backward_custom(list_data(batch), dpo_loss)
    update = client.optim_step(make_adam(step, num_steps))
    metrics = gradient.result().metrics
    told = {"step": step, **{key: metrics[key] for key in ("dpo/loss", "dpo/accuracy")}}
    update.result()
    if held_out and is_due(EVALUATE_EVERY, step, num_steps):
        margins = find_margins(held_out, torch.tensor(sum_logprobs(list_data(held_out))))
        told["held_out/accuracy"] = (margins > 0).float().mean().item()
    print(json.dumps(told), flush=True)
    if step == num_steps or is_due(CHECKPOINT_EVERY, step, num_steps):
        client.save_state(f"step-{step:06d}").result()
"""
REWARD_MODEL = '''

def write_turns(messages):
    if len(messages) == 1:
        return messages[0]["content"]
    return "\\n".join(f"{message['role']}: {message['content']}" for message in messages)


def encode_question(prompt, first, second, label):
    parts = [write_turns(prompt), f"A: {write_turns(first)}", f"B: {write_turns(second)}"]
    question = "\\n\\n".join([*parts, "Which answer is better, A or B?"])
    asked = [{"role": "user", "content": question}, {"role": "assistant", "content": label}]
    return encode(asked, [1])


def read_comparisons():
    """Both orders of each pair, where neither is too long."""
    for key, prompt, chosen, rejected in read_pairs():
        orders = [
            encode_question(prompt, chosen, rejected, "A"),
            encode_question(prompt, rejected, chosen, "B"),
        ]
        if not any(is_cut for _, _, is_cut in orders):
            yield key, [(tokens, weights) for tokens, weights, _ in orders]


def make_data(batch):
    """The weights of a batch sum to 1: its loss is the mean."""
    orders = [order for _, both in batch for order in both]
    total = sum(sum(weights[1:]) for _, weights in orders)
    return [make_datum(tokens, weights, 1 / total) for tokens, weights in orders]


def share_right(batch):
    """Orders in which the right label has more than half of the probability."""
    data = make_data(batch)
    outputs = client.forward(data, "cross_entropy").result().loss_fn_outputs
    right = [
        output["logprobs"].data[next(at for at, each in enumerate(weights[1:]) if each)]
        > math.log(0.5)
        for output, (_, weights) in zip(outputs, [order for _, both in batch for order in both])
    ]
    return sum(right) / len(right)


pairs = list(read_comparisons())
held_out = [pair for pair in pairs if is_held_out(pair[0])]
for step, num_steps, batch in make_batches([pair for pair in pairs if not is_held_out(pair[0])]):
    gradient = client.forward_backward(make_data(batch), "cross_entropy")
    update = client.optim_step(make_adam(step, num_steps))
    told = {"step": step, "loss": gradient.result().metrics["loss:sum"]}
    update.result()
    if held_out and is_due(EVALUATE_EVERY, step, num_steps):
        told["held_out/accuracy"] = share_right(held_out)
    print(json.dumps(told), flush=True)
    if step == num_steps or is_due(CHECKPOINT_EVERY, step, num_steps):
        client.save_state(f"step-{step:06d}").result()
'''
