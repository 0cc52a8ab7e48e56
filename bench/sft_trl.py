"""SFT contender: TRL's SFTTrainer with its defaults, on rows that are token ids already."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from bench.contest import Stopwatch
from bench.sft_rows import LEARNING_RATE, LORA, RANK, count_tokens, read_batches


class Turns(TrainerCallback):
    """Lets the trainer do a step when it is its turn, and reports it."""

    def __init__(self, watch: Stopwatch, tokens: list[int]) -> None:
        self.watch = watch
        self.tokens = tokens

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.watch.wait()

    def on_step_end(self, *arguments: Any, **_: Any) -> None:
        _, state, _ = arguments
        self.watch.stop(tokens=self.tokens[(state.global_step - 1) % len(self.tokens)])


def make_lora() -> LoraConfig:
    return LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def main(model: str, rows: str, kind: str) -> None:
    watch = Stopwatch()
    batches = read_batches(Path(rows))
    dataset = Dataset.from_list(
        [
            {"input_ids": list(row.tokens), "completion_mask": [int(on) for on in row.learned]}
            for batch in batches
            for row in batch
        ]
    )
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=len(batches[0]),
        learning_rate=LEARNING_RATE,
        weight_decay=0.0,
        num_train_epochs=1000,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        completion_only_loss=True,
        max_length=None,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=config,
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=make_lora() if kind == LORA else None,
        callbacks=[Turns(watch, [count_tokens(batch) for batch in batches])],
    )
    trainer.train()


main(*sys.argv[1:])
