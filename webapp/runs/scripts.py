"""The programs on the tinker SDK that do the same as a run from the form: the same rows in the same
order, the same weights to begin with, the same steps."""

from dataclasses import dataclass
from typing import Any

from training.recipes.config import RecipeConfig
from training.recipes.sft_config import SftConfig
from training.types import LORA_ALPHA

NO_EMBEDDING = "  # no flag means the input embedding, which the run on this page trains too"
NO_ALPHA = "  # no flag means alpha, which is {alpha:g} in the run on this page and {usual:g} here"
NO_STOP = "# The run on this page may stop early; this program makes all of its steps.\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a program has to know of the run that it does."""

    url: str
    base_model: str
    context_tokens: int  # 0: not known
    version_id: str  # of the dataset; empty: it learns from none
    config: RecipeConfig
    parent_path: str = ""  # the checkpoint whose weights it begins with, as the SDK names it
    with_optimizer: bool = False
    teacher: str = ""  # the argument that opens its sampling client


def write_head(program: Program, *, imports: str = "import tinker", **own: Any) -> str:
    """Settings as constants, the client and its tokenizer. `own` are settings of the method."""
    config = program.config
    settings = {
        "version": program.version_id,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "epochs": config.epochs,
        "steps": config.steps,
        "learning_rate": config.learning_rate,
        "schedule": config.schedule,
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "grad_clip_norm": config.grad_clip_norm,
        "held_out_share": config.held_out_share,
        "evaluate_every": config.evaluate_every,
        "checkpoint_every": config.checkpoint_every,
        "max_length": config.max_length or program.context_tokens or None,
        **own,
    }
    constants = "\n".join(f"{name.upper()} = {value!r}" for name, value in settings.items())
    needs = " ".join(["tinker transformers", *(["torch"] if "torch" in imports else [])])
    notes = NO_STOP if config.early_stop else ""
    fetched = FETCH if program.version_id else ""
    return (
        f"# pip install {needs}; export TINKER_BASE_URL={program.url} TINKER_API_KEY=tml-...\n"
        f"{notes}"
        f"import hashlib\nimport json\nimport math\nimport os\nimport urllib.request\n\n"
        f"{imports}\n\n{constants}\n{fetched}\n{write_client(program)}{TOKENIZER}"
    )


def write_client(program: Program) -> str:
    if program.parent_path:
        how = "_with_optimizer" if program.with_optimizer else ""
        begin = f"create_training_client_from_state{how}({program.parent_path!r})"
        return f"client = tinker.ServiceClient().{begin}\n"
    config = program.config
    notes = NO_EMBEDDING if config.train_embed else ""
    if config.alpha != LORA_ALPHA:
        notes += NO_ALPHA.format(alpha=config.alpha, usual=LORA_ALPHA)
    return (
        "client = tinker.ServiceClient().create_lora_training_client(\n"
        f"    base_model={program.base_model!r}, rank={config.rank}, seed=SEED,\n"
        f"    train_mlp={config.train_mlp}, train_attn={config.train_attn},"
        f" train_unembed={config.train_unembed},{notes}\n)\n"
    )


def write_order(config: RecipeConfig) -> str:
    split = BY_PROMPT if config.held_out_by == "prompt" else BY_ROW
    return DRAW + split.replace("SPLIT", config.split_name) + BATCHES


def write_sft(program: Program) -> str:
    assert isinstance(program.config, SftConfig)
    head = write_head(program, overlong=program.config.overlong)
    order = write_order(program.config)
    return head + order + SCHEDULE + ENCODE + SFT_ROWS + MAKE_DATA + SFT_SPLIT + SFT_STEPS


FETCH = """
ROWS = f"{VERSION}.jsonl"  # as the run learns from them
path = f"{os.environ['TINKER_BASE_URL']}/rest/dataset-versions/{VERSION}/rows.jsonl"
asked = urllib.request.Request(path, headers={"X-API-Key": os.environ["TINKER_API_KEY"]})
with urllib.request.urlopen(asked) as rows, open(ROWS, "wb") as file:
    file.write(rows.read())
"""
TOKENIZER = "tokenizer = client.get_tokenizer()\n"

# The order of rows comes from hashes: the run on the page has the same.
DRAW = """

def draw(purpose, key):
    return hashlib.blake2b(f"{purpose}/{SEED}/".encode() + key, digest_size=8).digest()


def hash_content(content):
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).digest()

"""
BY_ROW = """
hash_row = hash_content


def is_held_out(key):
    return int.from_bytes(draw("SPLIT", key), "big") < HELD_OUT_SHARE * 2**64
"""
BY_PROMPT = '''
prompt_keys = {}  # by the key of the row


def hash_row(content):
    """Rows with the same prompt stand on one side."""
    key = hash_content(content)
    is_pair = not isinstance(content, str) and isinstance(content[0], list)
    asked = content[0] if is_pair else [] if isinstance(content, str) else content
    while asked and asked[-1]["role"] == "assistant":
        asked = asked[:-1]
    prompt_keys[key] = hash_content(asked) if asked else key
    return key


def is_held_out(key):
    return int.from_bytes(draw("SPLIT", prompt_keys[key]), "big") < HELD_OUT_SHARE * 2**64
'''
BATCHES = '''

def make_batches(items):
    """Items begin with their key. An epoch is a shuffle, and follows the last without a gap."""
    num_steps = STEPS or max(1, math.ceil(round((EPOCHS or 1) * len(items) / BATCH_SIZE, 6)))
    waiting, epoch = [], 0
    for step in range(1, num_steps + 1):
        while len(waiting) < BATCH_SIZE:
            key = lambda at: draw(f"epoch {epoch}", items[at][0] + at.to_bytes(8, "big"))
            waiting += [items[at] for at in sorted(range(len(items)), key=key)]
            epoch += 1
        batch, waiting = waiting[:BATCH_SIZE], waiting[BATCH_SIZE:]
        yield step, num_steps, batch
'''
SCHEDULE = """

def make_adam(step, num_steps):
    if step <= WARMUP_STEPS:
        factor = step / (WARMUP_STEPS + 1)
    else:
        done = (step - 1 - WARMUP_STEPS) / max(1, num_steps - WARMUP_STEPS)
        cosine = (1 + math.cos(math.pi * done)) / 2
        factor = {"constant": 1.0, "linear": 1 - done, "cosine": cosine}[SCHEDULE]
    return tinker.AdamParams(
        learning_rate=LEARNING_RATE * factor,
        weight_decay=WEIGHT_DECAY,
        grad_clip_norm=GRAD_CLIP_NORM,
    )


def is_due(every, step, num_steps):
    return every > 0 and (step == num_steps or step % every == 0)
"""
ENCODE = '''

def render(messages, prompt=False):
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)


def encode(messages, learned):
    """Tokens, and a 1 for each that the assistant writes in the messages at `learned`."""
    read = tokenizer(render(messages), add_special_tokens=False, return_offsets_mapping=True)
    tokens, weights = read["input_ids"], [0.0] * len(read["input_ids"])
    for turn in learned:
        begin, end = len(render(messages[:turn], prompt=True)), len(render(messages[: turn + 1]))
        starts = enumerate(start for start, _ in read["offset_mapping"])
        inside = [at for at, start in starts if begin <= start < end]
        ends = [at for at in inside if tokens[at] in tokenizer.all_special_ids]
        for at in inside:
            weights[at] = float(not ends or at <= ends[-1])
    return tokens[:MAX_LENGTH], weights[:MAX_LENGTH], len(tokens) > (MAX_LENGTH or len(tokens))


def make_datum(tokens, weights, factor=1.0):
    weights = [factor * each for each in weights[1:]]
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": weights},
    )
'''
SFT_ROWS = '''

def encode_row(row):
    """Of plain text everything is learned, of a conversation what the assistant says."""
    if "text" in row and "messages" not in row:
        tokens = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        is_cut = len(tokens) > (MAX_LENGTH or len(tokens))
        weights = [1.0] * len(tokens)
        return row["text"], (tokens[:MAX_LENGTH], weights[:MAX_LENGTH], is_cut)
    messages = row.get("messages") or [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["completion"]},
    ]
    learned = [
        turn for turn, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("weight", 1)
    ]
    return messages, encode(messages, learned)


def read_rows():
    for line in open(ROWS, encoding="utf-8"):
        content, (tokens, weights, is_cut) = encode_row(json.loads(line))
        if any(weights[1:]) and not (is_cut and OVERLONG == "drop"):
            yield hash_row(content), tokens, weights
'''
MAKE_DATA = '''

def make_data(batch):
    """The weights of a batch sum to 1: its loss is the mean."""
    total = sum(sum(weights[1:]) for _, _, weights in batch)
    return [make_datum(tokens, weights, 1 / total) for _, tokens, weights in batch]
'''
SFT_SPLIT = """

rows = list(read_rows())
train = [row for row in rows if not is_held_out(row[0])]
held_out = [row for row in rows if is_held_out(row[0])]
"""
SFT_STEPS = """for step, num_steps, batch in make_batches(train):
    gradient = client.forward_backward(make_data(batch), "cross_entropy")
    update = client.optim_step(make_adam(step, num_steps))
    told = {"step": step, "loss": gradient.result().metrics["loss:sum"]}
    update.result()
    if held_out and is_due(EVALUATE_EVERY, step, num_steps):
        measured = client.forward(make_data(held_out), "cross_entropy").result()
        told["held_out_loss"] = measured.metrics["loss:sum"]
    print(json.dumps(told), flush=True)
    if step == num_steps or is_due(CHECKPOINT_EVERY, step, num_steps):
        client.save_state(f"step-{step:06d}").result()
"""
