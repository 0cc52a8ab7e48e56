"""A row of the bench as the SDK's datum, for the programs that run beside the SDK."""

from tinker import types

from bench.sft_rows import SftRow


def to_datum(row: SftRow) -> types.Datum:
    tokens = list(row.tokens)
    weights = [float(learned) for learned in row.learned[1:]]
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": weights},
    )
