"""What is asked about prompts, against a plain forward of transformers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from training.engine.generate import Generator, Limits
from training.errors import InvalidInput
from training.types import NO_TOKEN, SampleOutput, SampleRequest, SamplingParams, TargetTokens

TINY = Path(__file__).parents[2] / "assets" / "tiny-chatml-1m"
PROMPT = [1, *((37 * place + 5) % 1000 for place in range(150))]
ONE = SamplingParams(max_tokens=1, seed=5)
ASKED = SampleRequest(prompt=PROMPT, params=ONE)


@pytest.fixture(scope="module")
def generator() -> Generator:
    """It reads prompts in pieces that no other number here is a multiple of."""
    return Generator.load(TINY, limits=Limits(prompt_tokens=41))


@pytest.fixture(scope="module")
def logprobs() -> torch.Tensor:
    """(P - 1, V): row i speaks of token i + 1."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([PROMPT])).logits
    return logits[0, :-1].log_softmax(-1)


def ask(generator: Generator, request: SampleRequest) -> SampleOutput:
    ticket = generator.submit(request)
    while not (finished := generator.step()):
        pass
    assert finished[0].ticket == ticket
    assert isinstance(finished[0].result, SampleOutput)
    return finished[0].result


def make_targets(rows: Sequence[Sequence[int]]) -> TargetTokens:
    ids = np.array(rows)
    return TargetTokens(ids=ids.flatten(), shape=(len(ids), len(ids[0])))


def test_the_likeliest_tokens_of_each_place_are_sorted(
    generator: Generator, logprobs: torch.Tensor
) -> None:
    table = ask(generator, replace(ASKED, topk_prompt_logprobs=7)).topk_prompt_logprobs
    best = logprobs.topk(7)
    assert table is not None
    assert table.token_ids.shape == (len(PROMPT), 7)
    assert (table.token_ids[0].tolist(), set(table.logprobs[0].tolist())) == ([0] * 7, {NO_TOKEN})
    assert table.token_ids[1:].tolist() == best.indices.tolist()
    assert np.allclose(table.logprobs[1:], best.values, atol=1e-4)


def test_a_small_vocabulary_leaves_cells_empty(random_paths: dict[str, Path]) -> None:
    small = Generator.load(random_paths["llama"])
    request = SampleRequest(
        prompt=[1, 2, 3],
        params=SamplingParams(max_tokens=2, stop=()),
        topk_prompt_logprobs=100,
        topk_sample_logprobs=100,
    )
    output = ask(small, request)
    for table in (output.topk_prompt_logprobs, output.sequences[0].topk_logprobs):
        assert table is not None
        assert (table.logprobs[1:, 97:] == NO_TOKEN).all()
        assert (table.token_ids[1:, 97:] == 0).all()
        assert np.exp(table.logprobs[1, :97]).sum() == pytest.approx(1, abs=1e-5)


def test_only_the_last_n_are_computed(generator: Generator, logprobs: torch.Tensor) -> None:
    counted = CountedRows(generator)
    request = replace(
        ASKED, prompt_logprobs=True, topk_prompt_logprobs=2, prompt_logprobs_last_n=70
    )
    output = ask(generator, request)
    counted.restore()
    scored, table = output.prompt_logprobs, output.topk_prompt_logprobs
    assert scored is not None
    assert table is not None
    expected = logprobs[torch.arange(len(PROMPT) - 1), PROMPT[1:]]
    assert scored[:-70] == [None] * (len(PROMPT) - 70)
    assert scored[-70:] == pytest.approx(expected[-70:].tolist(), abs=1e-4)
    assert (table.logprobs[:-70] == NO_TOKEN).all()
    assert np.allclose(table.logprobs[-70:], logprobs.topk(2).values[-70:], atol=1e-4)
    assert counted.num_rows == 70 + 1  # and the row of the token that is sampled


class CountedRows:
    """How many rows a generator projects onto the vocabulary."""

    def __init__(self, generator: Generator) -> None:
        self.generator, self.num_rows, self.most = generator, 0, 0
        self.project = generator._project
        generator._project = self.count  # type: ignore[method-assign]

    def count(self, hidden_RD: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
        self.num_rows += len(hidden_RD)
        self.most = max(self.most, len(hidden_RD))
        return self.project(hidden_RD, keys)

    def restore(self) -> None:
        self.generator._project = self.project  # type: ignore[method-assign]


def test_everything_at_once_projects_each_row_once_and_few_at_a_time(
    logprobs: torch.Tensor,
) -> None:
    generator = Generator.load(TINY)  # reads the prompt as one piece
    counted = CountedRows(generator)
    request = replace(
        ASKED,
        prompt_logprobs=True,
        topk_prompt_logprobs=3,
        target_prompt_logprobs=make_targets([[5, 9]] * (len(PROMPT) - 1)),
        prompt_alt_tokens_k=2,
    )
    output = ask(generator, request)
    assert (counted.num_rows, counted.most) == (len(PROMPT), 64)
    assert output.prompt_logprobs is not None
    assert output.target_prompt_logprobs is not None
    expected = logprobs[torch.arange(len(PROMPT) - 1), PROMPT[1:]].tolist()
    assert output.prompt_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    found = output.target_prompt_logprobs.reshape(-1, 2)
    assert np.allclose(found, logprobs[:, [5, 9]], atol=1e-4)


def test_named_tokens_are_scored_and_the_others_are_0(
    generator: Generator, logprobs: torch.Tensor
) -> None:
    rows = [[-1, -1] for _ in PROMPT[1:]]
    rows[60], rows[149] = [7, -1], [1000, 3]
    counted = CountedRows(generator)
    output = ask(generator, replace(ASKED, target_prompt_logprobs=make_targets(rows)))
    counted.restore()
    assert output.target_prompt_logprobs is not None
    found = output.target_prompt_logprobs.reshape(-1, 2)
    expected = np.zeros_like(found)
    expected[60, 0], expected[149] = logprobs[60, 7], logprobs[149, [1000, 3]]
    assert np.allclose(found, expected, atol=1e-4)
    assert np.flatnonzero(found).tolist() == [120, 298, 299]
    assert counted.num_rows == 2 + 1
    assert output.prompt_logprobs is None


def test_listed_cells_are_answered_in_their_order(
    generator: Generator, logprobs: torch.Tensor
) -> None:
    starts = np.zeros(len(PROMPT), np.int64)
    starts[31:], starts[100:] = 2, 4
    targets = TargetTokens(
        ids=np.array([8, 4, -1, 9]),
        shape=(len(PROMPT) - 1, 50),
        row_starts=starts,
        columns=np.array([0, 49, 3, 4]),
    )
    output = ask(generator, replace(ASKED, target_prompt_logprobs=targets))
    assert output.target_prompt_logprobs is not None
    expected = [*logprobs[30, [8, 4]].tolist(), 0.0, logprobs[99, 9].item()]
    assert output.target_prompt_logprobs.tolist() == pytest.approx(expected, abs=1e-4)


def test_alternatives_are_drawn_by_the_seed_and_scored_by_the_model(
    generator: Generator, logprobs: torch.Tensor
) -> None:
    request = replace(ASKED, prompt_alt_tokens_k=40)
    table = ask(generator, request).prompt_alt_tokens
    again = ask(generator, request).prompt_alt_tokens
    other = ask(generator, replace(request, params=replace(ONE, seed=6))).prompt_alt_tokens
    assert table is not None
    assert again is not None
    assert other is not None
    assert table.token_ids.shape == (len(PROMPT) - 1, 40)
    assert (table.token_ids == again.token_ids).all()
    assert (table.token_ids != other.token_ids).any()
    expected = logprobs.gather(1, torch.from_numpy(table.token_ids))
    assert np.allclose(table.logprobs, expected, atol=1e-4)
    # 6,000 draws: their mean log-probability is the mean of the rows' negative entropies.
    entropy = -(logprobs.exp() * logprobs).sum(1).mean().item()
    assert -table.logprobs.mean() == pytest.approx(entropy, abs=0.1)


def test_cold_alternatives_are_the_likeliest(generator: Generator, logprobs: torch.Tensor) -> None:
    cold = SamplingParams(max_tokens=1, temperature=0)
    table = ask(generator, replace(ASKED, params=cold, prompt_alt_tokens_k=2)).prompt_alt_tokens
    assert table is not None
    assert table.token_ids.tolist() == [[token, token] for token in logprobs.argmax(1).tolist()]


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_the_likeliest_at_each_sampled_place_are_of_the_distribution_that_was_drawn_from(
    generator: Generator, temperature: float
) -> None:
    params = SamplingParams(max_tokens=5, seed=2, temperature=temperature, stop=())
    request = replace(ASKED, params=params, num_samples=2, topk_sample_logprobs=1000)
    plain = replace(ASKED, params=params)
    tickets = [generator.submit(each) for each in (request, plain)]
    done: dict[int, Any] = {}
    while len(done) < 2:
        done |= {each.ticket: each.result for each in generator.step()}
    for sequence in done[tickets[0]].sequences:
        table = sequence.topk_logprobs
        assert table.token_ids.shape == (5, 1000)
        assert (np.diff(table.logprobs) <= 0).all()
        assert np.exp(table.logprobs).sum(1) == pytest.approx([1] * 5, abs=0.05)
        for row, token, logprob in zip(range(5), sequence.tokens, sequence.logprobs, strict=True):
            (where,) = np.flatnonzero(table.token_ids[row] == token)
            assert table.logprobs[row, where] == pytest.approx(logprob, abs=1e-5)
    assert done[tickets[1]].sequences[0].topk_logprobs is None


def test_prompt_tables_of_samples_that_run_in_turns_are_computed_once() -> None:
    small = Generator.load(TINY, limits=Limits(sequences=1))
    request = replace(ASKED, num_samples=3, prompt_alt_tokens_k=2, topk_prompt_logprobs=1)
    table = ask(small, request).prompt_alt_tokens
    alone = ask(small, replace(ASKED, prompt_alt_tokens_k=2)).prompt_alt_tokens
    assert table is not None
    assert alone is not None
    assert (table.token_ids == alone.token_ids).all()


def sparse(starts: Sequence[int], columns: Sequence[int], shape: tuple[int, int]) -> TargetTokens:
    ids = np.zeros(len(columns), np.int64)
    return TargetTokens(
        ids=ids, shape=shape, row_starts=np.array(starts), columns=np.array(columns)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_logprobs_last_n": 1}, "last_n needs prompt_logprobs"),
        ({"prompt_logprobs_last_n": 3, "prompt_logprobs": True}, "last_n is 3: .* at most 2"),
        ({"prompt_logprobs_last_n": 0, "prompt_logprobs": True}, "last_n is 0: it is at least 1"),
        ({"topk_prompt_logprobs": -1}, "topk_prompt_logprobs is -1: it is at least 0"),
        ({"topk_prompt_logprobs": 1001}, "topk_prompt_logprobs is 1001: .* at most 1000"),
        ({"topk_sample_logprobs": 1001}, "topk_sample_logprobs is 1001"),
        ({"prompt_alt_tokens_k": 101}, "prompt_alt_tokens_k is 101: .* at most 100"),
        (
            {"topk_sample_logprobs": 1000, "num_samples": 1049},
            "topk_sample_logprobs is 1000 for each of 1049 tokens: a request may have 1048576",
        ),
        ({"target_prompt_logprobs": make_targets([[1]])}, r"shape \[1, 1\]: .* each of the 2"),
        ({"target_prompt_logprobs": make_targets([[-1], [-1]])}, "names no token"),
        ({"target_prompt_logprobs": make_targets([[-1], [2048]])}, "2048 at cell 1 is no token"),
        ({"target_prompt_logprobs": make_targets([[-2], [0]])}, "-2 at cell 0 is no token"),
        (
            {"target_prompt_logprobs": TargetTokens(ids=np.array([1]), shape=(2, 1))},
            r"cells do not fit the shape \[2, 1\]",
        ),
        ({"target_prompt_logprobs": sparse([0, 1], [0], (2, 5))}, "do not fit"),
        ({"target_prompt_logprobs": sparse([0, 2, 1], [0], (2, 5))}, "do not fit"),
        ({"target_prompt_logprobs": sparse([0, 1, 1], [5], (2, 5))}, "do not fit"),
        ({"target_prompt_logprobs": sparse([0, 2, 2], [3, 3], (2, 5))}, "do not fit"),
        ({"target_prompt_logprobs": sparse([0, 1, 1], [0], (2, 1 << 40))}, "1 to 2147483648 col"),
        ({"params": SamplingParams(stop=("a",) * 101)}, "stop has 101 strings"),
        ({"params": SamplingParams(stop=("a" * 1001,))}, "of up to 1001 characters"),
        ({"params": SamplingParams(stop=(3, -1))}, "stop has the token id -1"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(
    generator: Generator, changes: dict[str, Any], message: str
) -> None:
    request = SampleRequest(prompt=[1, 2, 3], params=ONE)
    with pytest.raises(InvalidInput, match=message):
        generator.submit(replace(request, **changes))
    assert generator.is_idle
