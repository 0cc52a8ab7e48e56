"""Rows to train on: random tokens of mixed lengths with the inputs of every loss."""

import numpy as np

from training.types import Datum


def make_datum(length: int, *, vocab_size: int = 97, seed: int = 0) -> Datum:
    """About a third of the positions carry weight and advantage."""
    random = np.random.default_rng(seed * 1000 + length)
    ids = random.integers(0, vocab_size, length + 1)
    on = random.random(length) < 0.35
    on[-1] = True
    return Datum(
        tokens=ids[:-1],
        inputs={
            "target_tokens": ids[1:],
            "weights": (on * random.uniform(0.2, 1.5, length)).astype(np.float32),
            "advantages": (on * random.normal(size=length)).astype(np.float32),
            "logprobs": random.uniform(-6, -3, length).astype(np.float32),
        },
    )


def make_data(*lengths: int, vocab_size: int = 97, seed: int = 0) -> list[Datum]:
    return [make_datum(length, vocab_size=vocab_size, seed=seed) for length in lengths]
