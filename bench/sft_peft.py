"""SFT contender: transformers and peft, rows padded to the longest of the batch."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from bench.contest import Stopwatch
from bench.sft_rows import LEARNING_RATE, RANK, SftRow, count_tokens, read_batches, repeat

IGNORED = -100  # the label that transformers' loss leaves out


def pad(batch: Sequence[SftRow]) -> dict[str, torch.Tensor]:
    width = max(len(row.tokens) for row in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    labels = torch.full((len(batch), width), IGNORED)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    for place, row in enumerate(batch):
        length = len(row.tokens)
        ids[place, :length] = torch.tensor(row.tokens)
        mask[place, :length] = 1
        learned = torch.tensor(row.learned)
        labels[place, :length] = torch.where(learned, ids[place, :length], IGNORED)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def main(model: str, rows: str) -> None:
    watch = Stopwatch()
    lora = LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), lora)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    policy.train()
    for batch in repeat(read_batches(Path(rows))):
        if not watch.wait():
            return
        loss = policy(**pad(batch)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        watch.stop(tokens=count_tokens(batch), loss=loss.item())


main(*sys.argv[1:])
