"""Samples in protobuf, number by number, and requests as rows keep them."""

from dataclasses import replace

import numpy as np
import pytest

from training.types import (
    NO_TOKEN,
    SampledSequence,
    SampleOutput,
    SampleRequest,
    SamplingParams,
    TargetTokens,
    TokenLogprobs,
)
from webapp.tinker.sample_payloads import read_payload, write_payload
from webapp.tinker.wire_samples import encode_sample_output
from webapp.wire import wire_pb2 as pb

REQUEST = SampleRequest(prompt=[1, 2, 3], params=SamplingParams())
DENSE = TargetTokens(ids=np.array([7, -1, 5, 6]), shape=(2, 2))
SPARSE = TargetTokens(
    ids=np.array([7]), shape=(2, 9), row_starts=np.array([0, 0, 1]), columns=np.array([8])
)


def encode(output: SampleOutput, request: SampleRequest = REQUEST) -> pb.SampleResponse:
    return pb.SampleResponse.FromString(encode_sample_output(output, request))


def read(data: bytes, dtype: str) -> list[float]:
    values: list[float] = np.frombuffer(data, dtype).tolist()
    return values


def make_table(ids: list[list[int]], logprobs: list[list[float]]) -> TokenLogprobs:
    return TokenLogprobs(token_ids=np.array(ids), logprobs=np.array(logprobs, np.float32))


def test_samples_travel_with_their_tokens_and_logprobs() -> None:
    output = SampleOutput(
        sequences=[
            SampledSequence(tokens=[1, 2], logprobs=[-0.5, -1.0], stop_reason="length"),
            SampledSequence(tokens=[3], logprobs=[-0.25], stop_reason="stop"),
        ],
        prompt_cache_hit_tokens=2,
    )
    message = encode(output)
    first, second = message.sequences
    assert (read(first.tokens, "<i4"), read(first.logprobs, "<f4")) == ([1, 2], [-0.5, -1.0])
    assert (first.stop_reason, second.stop_reason) == (1, 0)
    assert message.prompt_cache_hit_tokens == 2
    assert not message.HasField("prompt_logprobs")
    assert not message.HasField("topk_prompt_logprobs")
    assert not message.HasField("target_prompt_logprobs")
    assert not message.HasField("prompt_alt_tokens")
    assert not first.HasField("topk_sampled_logprobs")


def test_a_prompt_position_without_a_logprob_travels_as_nan() -> None:
    message = encode(SampleOutput(sequences=[], prompt_logprobs=[None, -1.5]))
    values = np.frombuffer(message.prompt_logprobs, "<f4")
    assert np.isnan(values).tolist() == [True, False]
    assert values[1] == -1.5


def test_tables_travel_row_by_row() -> None:
    table = make_table([[0, 0], [5, 4]], [[NO_TOKEN, NO_TOKEN], [-0.5, -2.0]])
    sequence = SampledSequence(
        tokens=[1, 2], logprobs=[-1, -1], stop_reason="stop", topk_logprobs=table
    )
    message = encode(SampleOutput(sequences=[sequence], topk_prompt_logprobs=table))
    for found in (message.topk_prompt_logprobs, message.sequences[0].topk_sampled_logprobs):
        assert (found.length, found.k) == (2, 2)
        assert read(found.token_ids, "<i4") == [0, 0, 5, 4]
        assert read(found.logprobs, "<f4") == [-99999.0, -99999.0, -0.5, -2.0]


def test_named_tokens_come_back_in_the_layout_they_were_asked_in() -> None:
    values = np.array([-0.5, 0, -1.5, -2], np.float32)
    output = SampleOutput(sequences=[], target_prompt_logprobs=values)
    dense = encode(output, replace(REQUEST, target_prompt_logprobs=DENSE)).target_prompt_logprobs
    assert (list(dense.shape), dense.dtype) == ([2, 2], pb.DTYPE_FLOAT32)
    assert read(dense.dense, "<f4") == [-0.5, 0, -1.5, -2]
    output = SampleOutput(sequences=[], target_prompt_logprobs=values[:1])
    sparse = encode(output, replace(REQUEST, target_prompt_logprobs=SPARSE)).target_prompt_logprobs
    assert (list(sparse.shape), sparse.WhichOneof("encoding")) == ([2, 9], "sparse_csr")
    csr = sparse.sparse_csr
    assert read(csr.values, "<f4") == [-0.5]
    assert (read(csr.crow_indices, "<i8"), read(csr.col_indices, "<i8")) == ([0, 0, 1], [8])


def test_alternatives_are_two_tensors() -> None:
    drawn = make_table([[5, 4], [3, 2]], [[-1, -2], [-3, -4]])
    message = encode(SampleOutput(sequences=[], prompt_alt_tokens=drawn)).prompt_alt_tokens
    assert (list(message.tokens.shape), list(message.logprobs.shape)) == ([2, 2], [2, 2])
    assert (message.tokens.dtype, message.logprobs.dtype) == (pb.DTYPE_INT64, pb.DTYPE_FLOAT32)
    assert read(message.tokens.dense, "<i8") == [5, 4, 3, 2]
    assert read(message.logprobs.dense, "<f4") == [-1, -2, -3, -4]


@pytest.mark.parametrize("stop", [None, (), ("a", "b"), (3,)])
def test_a_request_comes_back_from_its_row(stop: tuple[str, ...] | tuple[int, ...] | None) -> None:
    request = replace(
        REQUEST,
        params=SamplingParams(max_tokens=4, seed=2, temperature=0.5, stop=stop),
        num_samples=3,
        prompt_logprobs=True,
        prompt_logprobs_last_n=1,
        topk_prompt_logprobs=2,
        topk_sample_logprobs=3,
        prompt_alt_tokens_k=4,
    )
    payload = write_payload(request)
    assert read_payload(payload, payload["prompt"], payload["params"]) == request


@pytest.mark.parametrize("targets", [DENSE, SPARSE])
def test_named_tokens_come_back_from_their_row(targets: TargetTokens) -> None:
    payload = write_payload(replace(REQUEST, target_prompt_logprobs=targets))
    found = read_payload(payload, [], {}).target_prompt_logprobs
    assert found is not None
    assert (found.ids.tolist(), found.shape) == (targets.ids.tolist(), targets.shape)
    assert found.find_rows().tolist() == targets.find_rows().tolist()
