"""A row of the SFT contest as our engine takes it."""

import numpy as np

from bench.sft_rows import SftRow
from training.types import Datum


def to_datum(row: SftRow) -> Datum:
    tokens = np.array(row.tokens, np.int64)
    weights = np.array(row.learned[1:], np.float32)
    return Datum(tokens=tokens[:-1], inputs={"target_tokens": tokens[1:], "weights": weights})
