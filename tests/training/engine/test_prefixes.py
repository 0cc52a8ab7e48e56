"""Prompts that begin alike are read once, and nobody can tell from the numbers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from training.engine.calls import Span
from training.engine.generate import Generator, Limits
from training.engine.prefixes import count_common
from training.types import SampleOutput, SampleRequest, SamplingParams

TINY = Path(__file__).parents[2] / "assets" / "tiny-chatml-1m"
PROMPT = [1, *((37 * place + 5) % 1000 for place in range(149))]
OTHER = [*PROMPT[:100], *((11 * place + 3) % 1000 for place in range(60))]
REQUEST = SampleRequest(prompt=PROMPT, params=SamplingParams(max_tokens=6, seed=1, stop=()))


class Reader:
    """A generator that counts the tokens it has run through the model."""

    def __init__(self, **limits: Any) -> None:
        self.generator = Generator.load(TINY, limits=Limits(**limits))
        self.num_tokens = 0
        self.forward = self.generator._forward
        self.generator._forward = self.count  # type: ignore[method-assign]

    def count(self, spans: Sequence[Span]) -> torch.Tensor:
        self.num_tokens += sum(len(span.tokens) for span in spans)
        return self.forward(spans)

    def run(self, *requests: SampleRequest, adapters: Sequence[str | None] = ()) -> list[Any]:
        names = adapters or [None] * len(requests)
        pairs = zip(requests, names, strict=True)
        return self.finish([self.generator.submit(each, adapter=name) for each, name in pairs])

    def finish(self, tickets: Sequence[int]) -> list[Any]:
        done: dict[int, Any] = {}
        while not self.generator.is_idle:
            done |= {each.ticket: each.result for each in self.generator.step()}
        assert not any(slab.rows for slab in self.generator.cache.slabs.values())
        return [done[ticket] for ticket in tickets]


@pytest.fixture
def alone() -> Reader:
    return Reader()


def seeded(seed: int, **changes: Any) -> SampleRequest:
    return replace(REQUEST, params=replace(REQUEST.params, seed=seed), **changes)


def assert_same(output: SampleOutput, expected: SampleOutput) -> None:
    for found, wanted in zip(output.sequences, expected.sequences, strict=True):
        assert found.tokens == wanted.tokens
        assert found.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)


def test_a_group_of_equal_prompts_is_read_once(alone: Reader) -> None:
    reader = Reader(prompt_tokens=41)
    group = [seeded(seed) for seed in range(8)]
    outputs = reader.run(*group)
    assert [each.prompt_cache_hit_tokens for each in outputs] == [0] + [149] * 7
    assert reader.num_tokens == 150 + 7 + 8 * 5
    for request, output in zip(group, outputs, strict=True):
        (expected,) = alone.run(request)
        assert_same(output, expected)


def test_one_that_comes_later_copies_from_one_that_runs(alone: Reader) -> None:
    reader = Reader()
    first = reader.generator.submit(seeded(1))
    for _ in range(3):
        reader.generator.step()
    second = reader.generator.submit(seeded(2, prompt=OTHER))
    outputs = reader.finish([first, second])
    assert [each.prompt_cache_hit_tokens for each in outputs] == [0, 100]
    for output, request in zip(outputs, (seeded(1), seeded(2, prompt=OTHER)), strict=True):
        assert_same(output, alone.run(request)[0])


@pytest.mark.parametrize("lengths", [(150, 300), (300, 150), (150, 90)])
def test_prompts_of_other_lengths_copy_what_they_share(
    alone: Reader, lengths: tuple[int, int]
) -> None:
    whole = [*PROMPT, *((11 * place + 3) % 1000 for place in range(150))]
    requests = [seeded(index, prompt=whole[:length]) for index, length in enumerate(lengths)]
    outputs = Reader().run(*requests)
    shared = min(lengths[0], lengths[1] - 1)
    assert [each.prompt_cache_hit_tokens for each in outputs] == [0, shared]
    for output, request in zip(outputs, requests, strict=True):
        assert_same(output, alone.run(request)[0])


def test_nothing_is_kept_when_nobody_is_there(alone: Reader) -> None:
    for _ in range(2):
        (output,) = alone.run(REQUEST)
        assert output.prompt_cache_hit_tokens == 0


def test_a_lender_that_ends_with_its_first_token_has_lent(alone: Reader) -> None:
    reader = Reader()
    short = SamplingParams(max_tokens=1, seed=1)
    outputs = reader.run(replace(REQUEST, params=short), seeded(2))
    assert outputs[1].prompt_cache_hit_tokens == 149
    assert_same(outputs[1], alone.run(seeded(2))[0])


def test_a_lender_that_is_cancelled_lends_nothing(alone: Reader) -> None:
    reader = Reader(prompt_tokens=50)
    first, second = (reader.generator.submit(seeded(seed)) for seed in (1, 2))
    reader.generator.step()
    reader.generator.cancel(first)
    (output,) = reader.finish([second])
    assert output.prompt_cache_hit_tokens == 0
    assert_same(output, alone.run(seeded(2))[0])


def test_what_is_asked_of_the_prompt_is_computed_and_the_rest_copied(alone: Reader) -> None:
    asked = seeded(2, prompt_logprobs=True, prompt_logprobs_last_n=20)
    whole = seeded(3, prompt_logprobs=True)
    outputs = Reader().run(REQUEST, asked, whole)
    assert [each.prompt_cache_hit_tokens for each in outputs] == [0, 129, 0]
    for output, request in zip(outputs[1:], (asked, whole), strict=True):
        (expected,) = alone.run(request)
        first = len(PROMPT) - (request.prompt_logprobs_last_n or len(PROMPT) - 1)
        assert output.prompt_logprobs[:first] == [None] * first
        assert output.prompt_logprobs[first:] == pytest.approx(
            expected.prompt_logprobs[first:], abs=1e-4
        )


def test_samples_that_run_in_turns_copy_from_each_other(alone: Reader) -> None:
    reader = Reader(sequences=3)
    request = replace(REQUEST, num_samples=5)
    (output,) = reader.run(request)
    assert output.prompt_cache_hit_tokens == 0
    assert_same(output, alone.run(request)[0])


def test_adapters_lend_to_themselves_alone(tmp_path: Path) -> None:
    reader = Reader()
    for seed in (1, 2):
        reader.generator.load_adapter(str(seed), write_adapter(tmp_path / str(seed), seed))
    adapters = ("1", "2", None, "1", "2", None)
    outputs = reader.run(*[REQUEST] * 6, adapters=adapters)
    assert [each.prompt_cache_hit_tokens for each in outputs] == [0] * 3 + [149] * 3
    tokens = [each.sequences[0].tokens for each in outputs]
    assert tokens[:3] == tokens[3:]
    assert len({tuple(each) for each in tokens}) == 3


def write_adapter(folder: Path, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    layer = "base_model.model.model.layers.0.mlp.down_proj"
    tensors = {
        f"{layer}.lora_A.weight": torch.randn(2, 384, generator=generator),
        f"{layer}.lora_B.weight": torch.randn(128, 2, generator=generator),
    }
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 4}')
    return folder


@pytest.mark.parametrize("length", [0, 31, 32, 33, 99, 100])
def test_beginnings_are_counted_to_the_token(length: int) -> None:
    one = list(range(100))
    other = [*one[:length], -1, *range(50)]
    assert count_common(one, other) == count_common(other, one) == (length if length > 31 else 0)
