"""Samples in the protobuf of the Tinker wire."""

import math

import numpy as np

from training.types import (
    FloatArray,
    SampledSequence,
    SampleOutput,
    SampleRequest,
    TargetTokens,
    TokenLogprobs,
)
from webapp.wire import wire_pb2 as pb
from webapp.wire.routes import write_routes


def encode_sample_output(output: SampleOutput, request: SampleRequest) -> bytes:
    message = pb.SampleResponse(
        sequences=[_write_sequence(sequence) for sequence in output.sequences],
        prompt_cache_hit_tokens=output.prompt_cache_hit_tokens,
    )
    if output.prompt_routes is not None:
        message.prompt_routes.CopyFrom(write_routes(output.prompt_routes))
    if output.prompt_logprobs is not None:
        known = [math.nan if value is None else value for value in output.prompt_logprobs]
        message.prompt_logprobs = np.array(known, "<f4").tobytes()
    if output.topk_prompt_logprobs is not None:
        message.topk_prompt_logprobs.CopyFrom(_write_topk(output.topk_prompt_logprobs))
    targets, values = request.target_prompt_logprobs, output.target_prompt_logprobs
    if targets is not None and values is not None:
        message.target_prompt_logprobs.CopyFrom(_write_targets(targets, values))
    if output.prompt_alt_tokens is not None:
        message.prompt_alt_tokens.CopyFrom(_write_alt_tokens(output.prompt_alt_tokens))
    return message.SerializeToString()


def _write_sequence(sequence: SampledSequence) -> pb.SampledSequence:
    is_cut = sequence.stop_reason == "length"
    topk = sequence.topk_logprobs
    return pb.SampledSequence(
        stop_reason=pb.STOP_REASON_LENGTH if is_cut else pb.STOP_REASON_STOP,
        tokens=np.array(sequence.tokens, "<i4").tobytes(),
        logprobs=np.array(sequence.logprobs, "<f4").tobytes(),
        topk_sampled_logprobs=_write_topk(topk) if topk is not None else None,
        routes=None if sequence.routes is None else write_routes(sequence.routes),
    )


def _write_topk(table: TokenLogprobs) -> pb.TopkLogprobs:
    length, k = table.token_ids.shape
    return pb.TopkLogprobs(
        token_ids=table.token_ids.astype("<i4").tobytes(),
        logprobs=table.logprobs.astype("<f4").tobytes(),
        k=k,
        length=length,
    )


def _write_targets(targets: TargetTokens, values: FloatArray) -> pb.Tensor:
    """In the layout in which they were asked for."""
    tensor = pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=targets.shape)
    data = values.astype("<f4").tobytes()
    if targets.row_starts is None or targets.columns is None:
        tensor.dense = data
    else:
        tensor.sparse_csr.values = data
        tensor.sparse_csr.crow_indices = targets.row_starts.astype("<i8").tobytes()
        tensor.sparse_csr.col_indices = targets.columns.astype("<i8").tobytes()
    return tensor


def _write_alt_tokens(table: TokenLogprobs) -> pb.PromptAltTokens:
    shape = table.token_ids.shape
    tokens, logprobs = table.token_ids.astype("<i8"), table.logprobs.astype("<f4")
    return pb.PromptAltTokens(
        tokens=pb.Tensor(dense=tokens.tobytes(), dtype=pb.DTYPE_INT64, shape=shape),
        logprobs=pb.Tensor(dense=logprobs.tobytes(), dtype=pb.DTYPE_FLOAT32, shape=shape),
    )
