"""Stack contender: the real SDK, whose steps go through the wire, the log and the worker."""

import itertools
import json
import logging
import sys
import warnings
from pathlib import Path

import tinker
from tinker import types

from bench.contest import Stopwatch
from bench.sdk_datum import to_datum
from bench.sft_rows import LEARNING_RATE, RANK, count_tokens, read_batches


def main(connection: str, model: str, rows: str) -> None:
    watch = Stopwatch()
    where = json.loads(Path(connection).read_text())
    service = tinker.ServiceClient(base_url=where["url"], api_key=where["api_key"])
    trainer = service.create_lora_training_client(base_model=model, rank=RANK).result()
    adam = types.AdamParams(learning_rate=LEARNING_RATE)
    batches = read_batches(Path(rows))
    prepared = [([to_datum(row) for row in batch], count_tokens(batch)) for batch in batches]
    for data, num_tokens in itertools.cycle(prepared):
        if not watch.wait():
            return
        gradient = trainer.forward_backward(data, "cross_entropy")
        update = trainer.optim_step(adam)
        gradient.result()
        update.result()
        watch.stop(tokens=num_tokens)


warnings.simplefilter("ignore")
logging.disable(logging.INFO)
main(*sys.argv[1:])
