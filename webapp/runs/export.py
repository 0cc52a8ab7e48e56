"""A run as the REST call and the SDK program that do the same."""

import json
from dataclasses import dataclass
from typing import Any

from webapp.core.curl import JSON, KEY

SCRIPT = """\
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
class Export:
    """`script` is empty where no program on the SDK does the same."""

    curl: str
    script: str


def export_run(  # noqa: PLR0913 - the settings of a run, by name
    *, url: str, name: str, base_model: str, version_id: str, filename: str,
    config: dict[str, Any], parent_id: str = "", with_optimizer: bool = False,
) -> Export:  # fmt: skip
    body: dict[str, Any] = {
        "name": name,
        "base_model": base_model,
        "dataset_version": version_id,
        "config": config,
    }
    if parent_id:
        body |= {"parent": parent_id, "with_optimizer": with_optimizer}
    written = json.dumps(body, indent=2, ensure_ascii=False).replace("'", "'\\''")
    curl = f"curl {url}/rest/runs \\\n  {KEY} \\\n  {JSON} \\\n  -d '{written}'"
    is_full = config.get("rank") == 0
    script = "" if is_full else write_script(url, base_model, filename, config)
    return Export(curl=curl, script=script)


def write_script(url: str, base_model: str, filename: str, config: dict[str, Any]) -> str:
    return SCRIPT.format(
        url=url,
        base_model=base_model,
        filename=filename,
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
