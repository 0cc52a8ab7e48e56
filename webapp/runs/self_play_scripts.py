"""The program on the tinker SDK that does the same as a run of self-play."""

from training.recipes.games import GAMES, Nim
from training.recipes.self_play import SelfPlayConfig
from webapp.runs.rl_scripts import MASK, STD
from webapp.runs.scripts import SCHEDULE, Program, write_head

NIM = '''

def begin(key):
    return LEAST + int.from_bytes(draw("nim", key), "big") % (MOST - LEAST + 1)


def ask(stones):
    return f"Nim, last one wins. What is taken of {stones}? 1, 2 or 3"


def list_moves(stones):
    return range(1, min(3, stones) + 1)


def move(stones, taken):
    return stones - taken


def judge(stones):
    """What a position is worth to whoever has just moved; None: the game goes on."""
    return 1.0 if stones == 0 else None
'''
TIC_TAC_TOE = '''

LINES = ("012", "345", "678", "036", "147", "258", "048", "246")


def begin(key):
    return "." * 9


def find_mover(fields):
    return "X" if fields.count("X") == fields.count("O") else "O"


def ask(fields):
    rows = " ".join(fields[start:start + 3] for start in (0, 3, 6))
    return f"Tic-tac-toe: {rows}. You are {find_mover(fields)}. Which field, 1 to 9?"


def list_moves(fields):
    return [place + 1 for place, mark in enumerate(fields) if mark == "."]


def move(fields, place):
    return fields[:place - 1] + find_mover(fields) + fields[place:]


def judge(fields):
    """What a position is worth to whoever has just moved; None: the game goes on."""
    if any({fields[int(place)] for place in line} in ({"X"}, {"O"}) for line in LINES):
        return 1.0
    return None if "." in fields else 0.0
'''
DRAW = """

def draw(purpose, key):
    return hashlib.blake2b(f"{purpose}/{SEED}/".encode() + key, digest_size=8).digest()
"""
LOOP = '''

def encode(position):
    messages = [{"role": "user", "content": ask(position)}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)


def read_move(position, text):
    found = re.match(r"\\s*(\\d{1,3})\\W*", text)
    chosen = int(found[1]) if found else 0
    return chosen if chosen in list_moves(position) else None


def send(sampler, game):
    key = f"{game['key']}/{len(game['turns'])}".encode()
    game["prompt"] = encode(game["position"])
    params = tinker.SamplingParams(
        max_tokens=MAX_TOKENS,
        temperature=TEMPERATURE,
        seed=int.from_bytes(draw("rollout", key), "big") % 2**31,
    )
    return sampler.sample(tinker.ModelInput.from_ints(game["prompt"]), 1, params)


def take_turn(game, sequence):
    """A move that the rules do not allow loses."""
    text = tokenizer.decode(sequence.tokens, skip_special_tokens=True)
    chosen = read_move(game["position"], text)
    game["turns"].append((game["prompt"], sequence))
    if chosen is None:
        game["result"] = -1.0
    else:
        game["position"] = move(game["position"], chosen)
        game["result"] = judge(game["position"])


def play(sampler, games):
    while going := [game for game in games if game["result"] is None]:
        for game, future in [(game, send(sampler, game)) for game in going]:
            take_turn(game, future.result().sequences[0])


def compare(games):
    """Turns at one position are compared with each other: each with its advantage."""
    learned, alike = [], {}
    for game in games:
        for number, turn in enumerate(game["turns"]):
            reward = game["result"] * (1 if (len(game["turns"]) - number) % 2 else -1)
            alike.setdefault(tuple(turn[0]), []).append((turn, reward))
    for turns in alike.values():
        earned = [reward for _, reward in turns]
        if max(earned) > min(earned):
            mean = sum(earned) / len(earned)
            scale = SCALE
            learned += [(*turn, (reward - mean) / scale) for turn, reward in turns]
    return learned


def make_datum(prompt, sequence, advantage):
    tokens, before = prompt + list(sequence.tokens), [0.0] * (len(prompt) - 1)
    advantages = [advantage] * len(sequence.tokens)
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tokens[1:],
            "logprobs": before + list(sequence.logprobs),
            "advantages": before + advantages,MASK
        },
    )


num_batches = math.ceil(STEPS / NUM_SUBSTEPS)
for number in range(1, num_batches + 1):
    step, num_steps = number * NUM_SUBSTEPS, num_batches * NUM_SUBSTEPS
    sampler = client.save_weights_and_get_sampling_client()
    games = [
        {"position": begin(f"{step}/{at}".encode()), "key": f"{step}/{at}/{place}",
         "turns": [], "result": None}
        for at in range(BATCH_SIZE)
        for place in range(GROUP_SIZE)
    ]
    play(sampler, games)
    learned = compare(games)
    num_tokens = sum(len(sequence.tokens) for _, sequence, _ in learned)
    data = [make_datum(prompt, turn, each / num_tokens) for prompt, turn, each in learned]
    num_turns = sum(len(game["turns"]) for game in games)
    told = {"step": step, "turns": num_turns, "datums": len(data)}
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
'''


def write_self_play(program: Program) -> str:
    """Empty where a program would need more than one policy at a time."""
    config = program.config
    assert isinstance(config, SelfPlayConfig)
    if config.opponent != "self" or config.max_steps_off_policy or config.kl_coefficient:
        return ""
    game = GAMES[config.game]
    heap = {"most": game.most, "least": game.least} if isinstance(game, Nim) else {}
    head = write_head(
        program,
        imports="import re\n\nimport tinker",
        group_size=config.group_size,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        loss=config.loss,
        loss_config=config.loss_config or None,
        num_substeps=config.num_substeps,
        **heap,
    )
    rules = NIM if isinstance(game, Nim) else TIC_TAC_TOE
    by_std = config.advantage_normalization == "std"
    loop = LOOP.replace("SCALE", STD if by_std else "1.0")
    loop = loop.replace("MASK", MASK if config.asks_ratio_mask else "")
    return head + DRAW + SCHEDULE + rules + loop
