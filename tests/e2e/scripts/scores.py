"""Everything a sampling client may ask about a prompt and its samples, of the base model."""

from typing import Any

import numpy as np
from program import MODEL, connect, report, types
from tinker import BadRequestError

service = connect()
client = service.create_sampling_client(base_model=MODEL).result()
tokens = [1, *((37 * place + 5) % 1000 for place in range(40))]
prompt = types.ModelInput.from_ints(tokens)
in_pieces = types.ModelInput(
    chunks=[types.EncodedTextChunk(tokens=tokens[:3]), types.EncodedTextChunk(tokens=tokens[3:])]
)
one = types.SamplingParams(max_tokens=1, seed=3)


def sample(params: types.SamplingParams = one, num_samples: int = 1, **options: Any) -> Any:
    given = {"prompt": prompt, "num_samples": num_samples, **options}
    return client.sample(sampling_params=params, **given).result()


def read_samples(**params: Any) -> list[list[int]]:
    """Three of them."""
    response = sample(types.SamplingParams(**{"max_tokens": 8, **params}), 3)
    return [list(sequence.tokens) for sequence in response.sequences]


def refuse(**options: Any) -> str:
    try:
        sample(**options)
    except BadRequestError as error:
        return f"{type(error).__name__}: {error}"
    return "it was accepted"


everything = sample(
    include_prompt_logprobs=True, topk_prompt_logprobs=4, topk_sample_logprobs=3, num_samples=2
)
last = sample(include_prompt_logprobs=True, topk_prompt_logprobs=2, prompt_logprobs_last_n=5)
ids = np.full((len(tokens) - 1, 3), -1)
ids[9, 0], ids[9, 2], ids[39, 1] = tokens[10], 0, tokens[40]
# As TensorData.from_torch_sparse(ids, pad_value=-1) has it; torch is not needed for it here.
starts = [0] * 10 + [2] * 30 + [3]
sparse = types.TensorData(
    data=[tokens[10], 0, tokens[40]],
    dtype="int64",
    shape=list(ids.shape),
    sparse_crow_indices=starts,
    sparse_col_indices=[0, 2, 1],
)
dense = types.TensorData.from_numpy(ids)
named = sample(target_prompt_logprobs=dense).target_prompt_logprobs
listed = sample(target_prompt_logprobs=sparse).target_prompt_logprobs
drawn = sample(prompt_alt_tokens_k=4).prompt_alt_tokens
again = sample(prompt_alt_tokens_k=4).prompt_alt_tokens
free = read_samples(seed=2, stop=[], max_tokens=30)[0]
tempered = {
    str(each): sample(
        types.SamplingParams(max_tokens=4, seed=5, temperature=each, stop=[]),
        topk_sample_logprobs=1000,
    )
    .sequences[0]
    .topk_logprobs[0]
    for each in (0.0, 0.5, 1.0, 2.0)
}
report(
    tokens=tokens,
    computed=list(client.compute_logprobs(prompt).result()),
    computed_in_pieces=list(client.compute_logprobs(in_pieces).result()),
    prompt_logprobs=everything.prompt_logprobs,
    topk_prompt=everything.topk_prompt_logprobs,
    sampled=[
        [list(each.tokens), list(each.logprobs), each.topk_logprobs]
        for each in everything.sequences
    ],
    last=[last.prompt_logprobs, last.topk_prompt_logprobs],
    named=[named.sparse_crow_indices, named.to_numpy().tolist()],
    listed=[listed.shape, listed.sparse_crow_indices, listed.sparse_col_indices, listed.data],
    starts=starts,
    drawn=[drawn.tokens.to_numpy().tolist(), drawn.logprobs.to_numpy().tolist()],
    drawn_again=again.tokens.to_numpy().tolist(),
    seeded=[read_samples(seed=2, stop=[]) for _ in range(2)],
    unseeded=[read_samples(stop=[]) for _ in range(2)],
    cold=read_samples(temperature=0.0, stop=[]),
    free=free,
    by_id=read_samples(seed=2, max_tokens=30, stop=[free[4]])[0],
    by_string=read_samples(temperature=0.0, max_tokens=30, stop=" ")[0],
    by_strings=read_samples(temperature=0.0, max_tokens=30, stop=["never said", " "])[0],
    unbounded=len(sample(types.SamplingParams(seed=2, stop=[])).sequences[0].tokens),
    tempered=tempered,
    cached=everything.prompt_cache_hit_tokens,
    refused={
        "last_n": refuse(include_prompt_logprobs=True, prompt_logprobs_last_n=41),
        "topk": refuse(topk_prompt_logprobs=2000),
        "targets": refuse(
            target_prompt_logprobs=types.TensorData(data=[5], dtype="int64", shape=[1, 1])
        ),
        "empty": refuse(prompt=types.ModelInput.from_ints([])),
        "long": refuse(prompt=types.ModelInput.from_ints([5] * 600)),
        "image": refuse(
            prompt=types.ModelInput(chunks=[types.ImageChunk(data=b"x", format="png")])
        ),
    },
)
service.close("success").result()
