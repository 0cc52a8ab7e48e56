"""Samples in the protobuf of the Tinker wire."""

import math

import numpy as np

from training.types import SampledSequence, SampleOutput
from webapp.tinker import wire_pb2 as pb


def encode_sample_output(output: SampleOutput) -> bytes:
    message = pb.SampleResponse(
        sequences=[_write_sequence(sequence) for sequence in output.sequences]
    )
    if output.prompt_logprobs is not None:
        known = [math.nan if value is None else value for value in output.prompt_logprobs]
        message.prompt_logprobs = np.array(known, "<f4").tobytes()
    return message.SerializeToString()


def _write_sequence(sequence: SampledSequence) -> pb.SampledSequence:
    is_cut = sequence.stop_reason == "length"
    return pb.SampledSequence(
        stop_reason=pb.STOP_REASON_LENGTH if is_cut else pb.STOP_REASON_STOP,
        tokens=np.array(sequence.tokens, "<i4").tobytes(),
        logprobs=np.array(sequence.logprobs, "<f4").tobytes(),
    )


def decode_sample_output(body: bytes) -> SampleOutput:
    message = pb.SampleResponse.FromString(body)
    prompt_logprobs = None
    if message.HasField("prompt_logprobs"):
        values = np.frombuffer(message.prompt_logprobs, "<f4").tolist()
        prompt_logprobs = [None if math.isnan(value) else value for value in values]
    sequences = [_read_sequence(sequence) for sequence in message.sequences]
    return SampleOutput(sequences=sequences, prompt_logprobs=prompt_logprobs)


def _read_sequence(message: pb.SampledSequence) -> SampledSequence:
    return SampledSequence(
        tokens=np.frombuffer(message.tokens, "<i4").tolist(),
        logprobs=np.frombuffer(message.logprobs, "<f4").tolist(),
        stop_reason="length" if message.stop_reason == pb.STOP_REASON_LENGTH else "stop",
    )
