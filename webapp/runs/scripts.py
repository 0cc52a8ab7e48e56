"""The programs on the tinker SDK that do the same as a run from the form."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SFT = """\
# pip install tinker; export TINKER_BASE_URL={url} TINKER_API_KEY=tml-...
import json
import tinker

LEARNING_RATE, BATCH = {learning_rate!r}, {batch_size}
client = tinker.ServiceClient().create_lora_training_client(
    base_model={base_model!r}, rank={rank}, seed={seed},
    train_mlp={train_mlp}, train_attn={train_attn}, train_unembed={train_unembed},{embedding}
)
tokenizer = client.get_tokenizer()

def encode(row):
    text = [tokenizer.apply_chat_template(row["messages"][:-1], tokenize=False,
                                          add_generation_prompt=True),
            tokenizer.apply_chat_template(row["messages"], tokenize=False)]
    prompt, whole = (tokenizer.encode(each, add_special_tokens=False) for each in text)
    weights = [float(place >= len(prompt)) for place in range(1, len(whole))]
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(whole[:-1]),
        loss_fn_inputs={{"target_tokens": whole[1:], "weights": weights}},
    )

data = [encode(json.loads(line)) for line in open({filename!r})]
STEPS = {steps}
for step in range(STEPS):
    batch = [data[(step * BATCH + place) % len(data)] for place in range(BATCH)]
    gradient = client.forward_backward(batch, "cross_entropy")
    update = client.optim_step(tinker.AdamParams(learning_rate={rate}))
    print(step, gradient.result().metrics, update.result())
client.save_state("final").result()
"""

NO_FLAG = "  # no flag means the input embedding, which the run on this page trains too"
RATES = {
    "constant": "LEARNING_RATE",
    "linear": "LEARNING_RATE * (1 - step / STEPS)",
    "cosine": "LEARNING_RATE * (1 + __import__('math').cos(3.14159 * step / STEPS)) / 2",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a program has to know of the run that it does."""

    url: str
    base_model: str
    filename: str  # of the dataset; empty: it learns from none
    config: Mapping[str, Any]


def write_sft(program: Program) -> str:
    config = program.config
    return SFT.format(
        url=program.url,
        base_model=program.base_model,
        filename=program.filename,
        rank=config.get("rank", 32),
        seed=config.get("seed", 0),
        train_mlp=config.get("train_mlp", True),
        train_attn=config.get("train_attn", True),
        train_unembed=config.get("train_unembed", False),
        embedding=NO_FLAG if config.get("train_embed") else "",
        learning_rate=config.get("learning_rate", 1e-4),
        batch_size=config.get("batch_size", 8),
        steps=config.get("steps") or f"round({config.get('epochs') or 1} * len(data) / BATCH)",
        rate=RATES[config.get("schedule", "linear")],
    )
