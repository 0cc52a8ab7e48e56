"""SFT contender: our engine."""

import itertools
import sys
from pathlib import Path

from bench.contest import Stopwatch
from bench.sft_datum import to_datum
from bench.sft_rows import FULL, LEARNING_RATE, RANK, count_tokens, read_batches
from training.engine.core import Engine
from training.types import AdamParams, ForwardBackward, ForwardBackwardOutput, LoraSpec


def main(model: str, rows: str, kind: str, logprobs: str = "weighted") -> None:
    watch = Stopwatch()
    engine = Engine.load(Path(model))
    engine.create_adapter("run", LoraSpec(rank=0 if kind == FULL else RANK))
    batches = read_batches(Path(rows))
    prepared = [([to_datum(row) for row in batch], count_tokens(batch)) for batch in batches]
    for data, num_tokens in itertools.cycle(prepared):
        if not watch.wait():
            return
        request = ForwardBackward(data=data, config={"logprobs": logprobs})
        output = engine.forward_backward({"run": request})["run"]
        assert isinstance(output, ForwardBackwardOutput)
        engine.optim_step("run", AdamParams(learning_rate=LEARNING_RATE))
        loss = output.metrics["loss:sum"] / output.metrics["weights:sum"]
        watch.stop(tokens=num_tokens, loss=loss)


main(*sys.argv[1:])
