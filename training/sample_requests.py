"""What a request for samples may contain, and the refusal that names the field."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from training.errors import InvalidInput
from training.types import IntArray, SampleRequest, SamplingParams, TargetTokens

MAX_TOPK = 1000
MAX_ALT_TOKENS = 100
MAX_STOPS = 100  # strings are looked for after every token
MAX_STOP_CHARACTERS = 1000
MAX_CELLS = 1 << 20  # of one table of tokens in an answer
MAX_COLUMNS = 1 << 31  # of which a sparse table may name few


def check_sample(request: SampleRequest, vocab_size: int, context: int) -> None:
    """Raise InvalidInput on the first thing that cannot be computed."""
    check_params(request.params)
    if request.num_samples < 1:
        raise InvalidInput(f"num_samples must be at least 1, not {request.num_samples}")
    _check_prompt(request, vocab_size, context)
    _check_last_n(request)
    _check_tables(request, context)
    if request.target_prompt_logprobs is not None:
        _check_targets(request.target_prompt_logprobs, len(request.prompt), vocab_size)


def count_allowed(request: SampleRequest, context: int) -> int:
    """How many tokens each sample may have at most."""
    return request.params.max_tokens or context - len(request.prompt)


def check_params(params: SamplingParams) -> None:
    if params.max_tokens is not None and params.max_tokens < 1:
        raise InvalidInput(f"max_tokens must be at least 1, not {params.max_tokens}")
    if not 0 <= params.temperature < float("inf"):
        raise InvalidInput(f"temperature must be 0 or more, not {params.temperature}")
    if not 0 < params.top_p <= 1:
        raise InvalidInput(f"top_p must be above 0 and at most 1, not {params.top_p}")
    if params.top_k < -1:
        raise InvalidInput(f"top_k must be -1 (off) or more, not {params.top_k}")
    _check_stop(params.stop or ())


def _check_stop(stop: tuple[str, ...] | tuple[int, ...]) -> None:
    strings = [each for each in stop if isinstance(each, str)]
    if "" in strings:
        raise InvalidInput("a stop string is empty: leave it out")
    longest = max((len(each) for each in strings), default=0)
    if len(strings) > MAX_STOPS or longest > MAX_STOP_CHARACTERS:
        raise InvalidInput(
            f"stop has {len(strings)} strings of up to {longest} characters: at most {MAX_STOPS}"
            f" of {MAX_STOP_CHARACTERS} are looked for"
        )
    negative = next((each for each in stop if isinstance(each, int) and each < 0), None)
    if negative is not None:
        raise InvalidInput(f"stop has the token id {negative}: ids are 0 or more")


def _check_prompt(request: SampleRequest, vocab_size: int, context: int) -> None:
    prompt, wanted = request.prompt, request.params.max_tokens
    if not prompt:
        raise InvalidInput("The prompt is empty: send at least one token")
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        position = next(i for i, token in enumerate(prompt) if not 0 <= token < vocab_size)
        raise InvalidInput(
            f"Token id {prompt[position]} at position {position} of the prompt is out of"
            f" vocabulary: ids are 0 to {vocab_size - 1}"
        )
    if len(prompt) + (wanted or 1) > context:
        raise InvalidInput(
            "Prompt length plus max_tokens exceeds the model's context window: "
            f"{len(prompt)} + {wanted or 1} > {context}"
        )


def _check_last_n(request: SampleRequest) -> None:
    last_n, most = request.prompt_logprobs_last_n, len(request.prompt) - 1
    if last_n is None:
        return
    if not request.prompt_logprobs:
        raise InvalidInput("prompt_logprobs_last_n needs prompt_logprobs: set it to true")
    if not 1 <= last_n <= most:
        raise InvalidInput(
            f"prompt_logprobs_last_n is {last_n}: it is at least 1 and at most {most}, the length"
            " of the prompt less one"
        )


def _check_tables(request: SampleRequest, context: int) -> None:
    """The tables with k columns: how wide they may be, and how many cells they may have."""
    length = len(request.prompt)
    sampled = request.num_samples * count_allowed(request, context)
    topk, drawn = request.topk_prompt_logprobs, request.prompt_alt_tokens_k
    _check_table("topk_prompt_logprobs", topk, MAX_TOPK, length)
    _check_table("topk_sample_logprobs", request.topk_sample_logprobs, MAX_TOPK, sampled)
    _check_table("prompt_alt_tokens_k", drawn, MAX_ALT_TOKENS, length)


def _check_table(name: str, k: int, most: int, num_rows: int) -> None:
    if not 0 <= k <= most:
        raise InvalidInput(f"{name} is {k}: it is at least 0 and at most {most}")
    if k * num_rows > MAX_CELLS:
        raise InvalidInput(
            f"{name} is {k} for each of {num_rows} tokens: a request may have {MAX_CELLS} of these"
            " in all"
        )


def _check_targets(targets: TargetTokens, length: int, vocab_size: int) -> None:
    name, ids = "target_prompt_logprobs", targets.ids
    num_rows, num_columns = targets.shape
    if num_rows != length - 1 or not 1 <= num_columns <= MAX_COLUMNS:
        raise InvalidInput(
            f"{name} has the shape {list(targets.shape)}: it has a row for each of the"
            f" {length - 1} tokens after the prompt's first, and 1 to {MAX_COLUMNS} columns"
        )
    if len(ids) > MAX_CELLS:
        raise InvalidInput(f"{name} has {len(ids)} cells: a request may have {MAX_CELLS}")
    if not _has_layout(targets):
        raise InvalidInput(f"{name}: its cells do not fit the shape {list(targets.shape)}")
    if not (ids >= 0).any():
        raise InvalidInput(f"{name} names no token: leave it out, or name one at least")
    wrong = np.flatnonzero((ids < -1) | (ids >= vocab_size))
    if len(wrong):
        raise InvalidInput(
            f"{name}: {ids[wrong[0]]} at cell {wrong[0]} is no token of this model: ids are 0 to"
            f" {vocab_size - 1}, and -1 asks for nothing"
        )


def _has_layout(targets: TargetTokens) -> bool:
    num_rows, num_columns = targets.shape
    starts, columns = targets.row_starts, targets.columns
    if starts is None or columns is None:
        return starts is columns and len(targets.ids) == num_rows * num_columns
    if len(starts) != num_rows + 1 or starts[0] != 0 or starts[-1] != len(targets.ids):
        return False
    fits = len(columns) == len(targets.ids) and bool((np.diff(starts) >= 0).all())
    return fits and _are_columns(columns, targets.find_rows(), num_columns)


def _are_columns(columns: IntArray, rows: IntArray, num_columns: int) -> bool:
    """Within the shape, and rising within each row: no cell is named twice."""
    rises = (np.diff(columns) > 0) | (np.diff(rows) > 0)
    return bool(((columns >= 0) & (columns < num_columns)).all() and rises.all())


def describe_targets(targets: TargetTokens) -> dict[str, Any]:
    """As JSON, in the words of the Tinker wire."""
    described: dict[str, Any] = {"data": targets.ids.tolist(), "shape": list(targets.shape)}
    if targets.row_starts is not None and targets.columns is not None:
        described["sparse_crow_indices"] = targets.row_starts.tolist()
        described["sparse_col_indices"] = targets.columns.tolist()
    return described


def read_targets(described: Mapping[str, Any]) -> TargetTokens:
    """Of lists of whole numbers: whether they fit together is for `check_sample` to say."""
    num_rows, num_columns = described["shape"]
    starts, columns = (
        described.get(name) for name in ("sparse_crow_indices", "sparse_col_indices")
    )
    try:
        return TargetTokens(
            ids=np.array(described["data"], np.int64),
            shape=(num_rows, num_columns),
            row_starts=None if starts is None else np.array(starts, np.int64),
            columns=None if columns is None else np.array(columns, np.int64),
        )
    except OverflowError:
        raise InvalidInput("target_prompt_logprobs has a number beyond int64") from None
