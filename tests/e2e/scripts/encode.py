"""The SDK's own encoder and decoders, as oracles: what it sends, and what it reads of ours."""

import base64
import json
import sys

from program import report, types
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.proto.response_conv import (
    deserialize_forward_backward_output,
    deserialize_sample_response,
)

given = {key: base64.b64decode(value) for key, value in json.load(sys.stdin).items()}

inputs = {
    "target_tokens": [2, 3, 4],
    "weights": [0.0, 0.5, -1.0],
    "logprobs": types.TensorData(data=[-1.0, -2.0, -3.0], dtype="float32", shape=[3]),
}
chunks = [types.EncodedTextChunk(tokens=[1, 2]), types.EncodedTextChunk(tokens=[3])]
datum = types.Datum(model_input=types.ModelInput(chunks=chunks), loss_fn_inputs=inputs)
request = types.ForwardBackwardRequest(
    forward_backward_input=types.ForwardBackwardInput(
        data=[datum], loss_fn="ppo", loss_fn_config={"clip_low_threshold": 0.9, "mode": "x"}
    ),
    model_id="ses-1:train:0",
    seq_id=7,
)
output = deserialize_forward_backward_output(given["output"])
samples = deserialize_sample_response(given["samples"])
report(
    request=base64.b64encode(
        forward_backward_request_to_proto(request).SerializeToString()
    ).decode(),
    logprobs=[each["logprobs"].tolist() for each in output.loss_fn_outputs],
    metrics=output.metrics,
    sequences=[
        [list(each.tokens), list(each.logprobs), each.stop_reason] for each in samples.sequences
    ],
    prompt_logprobs=list(samples.prompt_logprobs),
)
