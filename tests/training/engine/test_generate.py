"""The built-in sampler against transformers and peft: the same tokens, the same numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from training.engine.generate import Generator, Limits
from training.types import SampledSequence, SampleOutput, SampleRequest, SamplingParams

# peft reads a property of transformers that is on its way out, and warns of merging a tied head.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]

TINY = Path(__file__).parents[2] / "assets" / "tiny-chatml-1m"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EVERYWHERE = (*ATTENTION, "gate_proj", "up_proj", "down_proj", "lm_head")
PROMPTS = [
    [1, *(37 * index + 11 * place + 5 for place in range(1 + 3 * index))] for index in range(16)
]
GREEDY = SamplingParams(max_tokens=24, temperature=0)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator.load(TINY)


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    model.train(False)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters of different ranks and targets, with a B that is far from zero."""
    kinds = [(4, ATTENTION, False), (16, EVERYWHERE, False), (3, ("down_proj",), True)]
    return [
        make_adapter(tmp_path_factory.mktemp("adapter"), seed, *kind)
        for seed, kind in enumerate(kinds)
    ]


@pytest.fixture
def adapters(generator: Generator, folders: list[Path]) -> Iterator[list[str]]:
    names = [f"run/{index}" for index in range(len(folders))]
    for name, folder in zip(names, folders, strict=True):
        generator.load_adapter(name, folder)
    yield names
    for name in names:
        generator.unload_adapter(name)


def make_adapter(
    folder: Path, seed: int, rank: int, targets: Sequence[str], rslora: bool = False
) -> Path:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    config = LoraConfig(
        r=rank,
        lora_alpha=32,
        target_modules=list(targets),
        use_rslora=rslora,
        init_lora_weights=False,
    )
    tuned = get_peft_model(model, config)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.08)
    tuned.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def run_all(
    generator: Generator, requests: Sequence[tuple[SampleRequest, str | None]]
) -> list[SampleOutput]:
    tickets = [generator.submit(request, adapter=adapter) for request, adapter in requests]
    done: dict[int, SampleOutput] = {}
    while len(done) < len(tickets):
        for finished in generator.step():
            assert isinstance(finished.result, SampleOutput), finished.result
            done[finished.ticket] = finished.result
    return [done[ticket] for ticket in tickets]


def run_one(
    generator: Generator,
    prompt: Sequence[int],
    params: SamplingParams,
    adapter: str | None = None,
) -> SampledSequence:
    request = SampleRequest(prompt=prompt, params=params)
    return run_all(generator, [(request, adapter)])[0].sequences[0]


def score(model: nn.Module, tokens: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probability of each token but the first, by a plain forward."""
    ids = torch.tensor([list(tokens)])
    with torch.no_grad():
        logits: torch.Tensor = model(ids).logits
    logprobs = (logits.float() / temperature).log_softmax(-1)
    return logprobs[0, :-1].gather(1, ids[0, 1:, None])[:, 0]


def assert_scores(
    output: SampleOutput, prompt: Sequence[int], model: nn.Module, temperature: float = 1.0
) -> None:
    for sequence in output.sequences:
        whole = score(model, [*prompt, *sequence.tokens], temperature)
        expected = whole[len(prompt) - 1 :]
        assert torch.allclose(torch.tensor(sequence.logprobs), expected, atol=1e-4)


def test_greedy_among_sixteen_is_transformers_generate_token_for_token(
    generator: Generator, reference: PreTrainedModel
) -> None:
    requests = [(SampleRequest(prompt=prompt, params=GREEDY), None) for prompt in PROMPTS]
    for prompt, output in zip(PROMPTS, run_all(generator, requests), strict=True):
        ids = torch.tensor([prompt])
        expected = reference.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
        )
        assert output.sequences[0].tokens == expected[0, len(prompt) :].tolist()
        assert_scores(output, prompt, reference)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_logprobs_are_of_the_tempered_distribution_before_truncation(
    generator: Generator, reference: PreTrainedModel, temperature: float
) -> None:
    params = SamplingParams(max_tokens=24, temperature=temperature, top_k=20, top_p=0.8, seed=3)
    request = SampleRequest(prompt=PROMPTS[3], params=params)
    output = run_all(generator, [(request, None)])[0]
    assert_scores(output, PROMPTS[3], reference, temperature)


def test_an_adapter_answers_as_peft_does(
    generator: Generator, adapters: list[str], folders: list[Path]
) -> None:
    requests = [(SampleRequest(prompt=PROMPTS[4], params=GREEDY), name) for name in adapters]
    outputs = run_all(generator, requests)
    for folder, output in zip(folders, outputs, strict=True):
        model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
        tuned = PeftModel.from_pretrained(model, folder).eval()
        assert_scores(output, PROMPTS[4], tuned)
        last = output.sequences[0].tokens
        with torch.no_grad():
            logits = tuned(torch.tensor([[*PROMPTS[4], *last]])).logits[0]
        assert logits[len(PROMPTS[4]) - 1 : -1].argmax(-1).tolist() == last
    assert len({tuple(output.sequences[0].tokens) for output in outputs}) == len(folders)


def test_a_seed_gives_the_same_tokens_alone_and_among_others(
    generator: Generator, adapters: list[str]
) -> None:
    names = [None, *adapters]
    requests = [
        (
            SampleRequest(prompt=prompt, params=SamplingParams(max_tokens=30, seed=index, stop=())),
            names[index % len(names)],
        )
        for index, prompt in enumerate(PROMPTS)
    ]
    together = run_all(generator, requests)
    for request, output in zip(requests, together, strict=True):
        alone = run_all(generator, [request])[0].sequences[0]
        assert output.sequences[0].tokens == alone.tokens
        assert output.sequences[0].logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_samples_of_one_prompt_differ_from_each_other_and_not_from_run_to_run(
    generator: Generator, reference: PreTrainedModel
) -> None:
    params = SamplingParams(max_tokens=12, seed=7, stop=())
    request = SampleRequest(prompt=PROMPTS[5], params=params, num_samples=6)
    first, second = (run_all(generator, [(request, None)])[0] for _ in range(2))
    assert [each.tokens for each in first.sequences] == [each.tokens for each in second.sequences]
    assert len({tuple(each.tokens) for each in first.sequences}) == 6
    assert_scores(first, PROMPTS[5], reference)
    assert first.sequences[0].tokens == run_one(generator, PROMPTS[5], params).tokens


def test_more_samples_than_fit_run_in_turns(reference: PreTrainedModel) -> None:
    small = Generator.load(TINY, limits=Limits(sequences=3))
    params = SamplingParams(max_tokens=6, seed=7, stop=())
    request = SampleRequest(prompt=PROMPTS[5], params=params, num_samples=8, prompt_logprobs=True)
    outputs = run_all(small, [(request, None), (request, None)])
    assert [len(output.sequences) for output in outputs] == [8, 8]
    assert outputs[0].prompt_logprobs == outputs[1].prompt_logprobs
    assert len(outputs[0].prompt_logprobs or ()) == len(PROMPTS[5])
    assert_scores(outputs[1], PROMPTS[5], reference)
    assert not small.cache.slabs[128].rows


def test_a_small_cache_admits_one_after_the_other() -> None:
    small = Generator.load(TINY, limits=Limits(cache_bytes=1))
    requests = [(SampleRequest(prompt=prompt, params=GREEDY), None) for prompt in PROMPTS[:3]]
    tickets = [small.submit(request) for request, _ in requests]
    most = 0
    while not small.is_idle:
        small.step()
        most = max(most, len(small.running))
    assert (most, len(tickets)) == (1, 3)


def test_sequences_that_outgrow_their_slab_keep_their_numbers(
    generator: Generator, reference: PreTrainedModel
) -> None:
    params = SamplingParams(max_tokens=200, seed=1, stop=())
    prompts = [PROMPTS[0], PROMPTS[15], PROMPTS[15] * 3]
    requests = [(SampleRequest(prompt=prompt, params=params), None) for prompt in prompts]
    for prompt, output in zip(prompts, run_all(generator, requests), strict=True):
        assert_scores(output, prompt, reference)


def test_a_long_prompt_is_read_in_pieces_while_others_go_on(reference: PreTrainedModel) -> None:
    small = Generator.load(TINY, limits=Limits(prompt_tokens=40, prompt_tokens_between=16))
    long = (PROMPTS[15] * 9)[:400]
    heard: list[int] = []
    params = SamplingParams(max_tokens=40, seed=2, stop=())
    small.submit(
        SampleRequest(prompt=PROMPTS[1], params=params),
        listener=lambda token: heard.append(token.token),
    )
    small.step()
    ticket = small.submit(SampleRequest(prompt=long, params=params, prompt_logprobs=True))
    for turn in range(1, 20):
        small.step()
        assert len(heard) == 1 + turn
        assert [call.scores.num_done for call in small.reading] == [16 * turn]
    output = finish(small, ticket)
    assert_scores(output, long, reference)
    assert output.prompt_logprobs is not None
    measured = torch.tensor(output.prompt_logprobs[1:])
    assert torch.allclose(measured, score(reference, long), atol=1e-4)


def finish(generator: Generator, ticket: int) -> SampleOutput:
    while True:
        for finished in generator.step():
            if finished.ticket == ticket:
                assert isinstance(finished.result, SampleOutput)
                return finished.result


def test_prompt_logprobs_with_an_adapter_of_the_head(
    generator: Generator, adapters: list[str], folders: list[Path]
) -> None:
    params = SamplingParams(max_tokens=1)
    request = SampleRequest(prompt=PROMPTS[9], params=params, prompt_logprobs=True)
    outputs = run_all(generator, [(request, None), (request, adapters[1]), (request, adapters[0])])
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(model, folders[1]).eval()
    scored = outputs[1].prompt_logprobs
    assert scored is not None
    assert scored[0] is None
    assert torch.allclose(torch.tensor(scored[1:]), score(tuned, PROMPTS[9]), atol=1e-4)


def test_one_prompt_token_has_no_logprob(generator: Generator) -> None:
    request = SampleRequest(
        prompt=[5], params=SamplingParams(max_tokens=1), num_samples=2, prompt_logprobs=True
    )
    assert run_all(generator, [(request, None)])[0].prompt_logprobs == [None]


def test_what_stops_a_sample(generator: Generator) -> None:
    free = run_one(generator, PROMPTS[2], SamplingParams(max_tokens=40, seed=5, stop=()))
    assert (len(free.tokens), free.stop_reason) == (40, "length")
    token = free.tokens[17]
    where = free.tokens.index(token)
    by_id = run_one(generator, PROMPTS[2], SamplingParams(max_tokens=40, seed=5, stop=(token,)))
    assert (list(by_id.tokens), by_id.stop_reason) == (free.tokens[: where + 1], "stop")
    assert len(by_id.logprobs) == where + 1


def test_a_stop_string_across_tokens_ends_the_sample_with_its_text(generator: Generator) -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    free = run_one(generator, PROMPTS[2], SamplingParams(max_tokens=40, seed=5, stop=()))
    text = tokenizer.decode(list(free.tokens)[:20], skip_special_tokens=False)
    stop = text[-4:]
    assert "�" not in stop
    params = SamplingParams(max_tokens=40, seed=5, stop=("never to be said", stop))
    stopped = run_one(generator, PROMPTS[2], params)
    assert stopped.stop_reason == "stop"
    assert list(stopped.tokens) == free.tokens[: len(stopped.tokens)]
    assert stop in tokenizer.decode(stopped.tokens, skip_special_tokens=False)
    assert stop not in tokenizer.decode(stopped.tokens[:-1], skip_special_tokens=False)


def test_the_end_token_stops_unless_stop_is_empty(generator: Generator) -> None:
    end = next(iter(generator.end_ids))
    free = run_one(generator, PROMPTS[2], SamplingParams(max_tokens=40, seed=5, stop=()))
    generator.end_ids = frozenset([free.tokens[9]])
    params = SamplingParams(max_tokens=40, seed=5)
    ended = run_one(generator, PROMPTS[2], params)
    beside = [
        run_one(generator, PROMPTS[2], replace(params, stop=stop))
        for stop in (("never to be said",), (1023,))
    ]
    generator.end_ids = frozenset([end])
    assert ended.stop_reason == "stop"
    assert list(ended.tokens) == free.tokens[: free.tokens.index(free.tokens[9]) + 1]
    assert [each.tokens for each in beside] == [ended.tokens] * 2


def test_max_tokens_left_out_means_up_to_the_context(generator: Generator) -> None:
    sample = run_one(generator, [5] * 500, SamplingParams(seed=1, stop=()))
    assert (len(sample.tokens), sample.stop_reason) == (12, "length")


def test_a_cancelled_request_leaves_at_once_wherever_it_is(generator: Generator) -> None:
    params = SamplingParams(max_tokens=50, seed=1, stop=())
    runs, waits = (
        generator.submit(SampleRequest(prompt=PROMPTS[6], params=params, num_samples=3)),
        generator.submit(SampleRequest(prompt=PROMPTS[7], params=params)),
    )
    generator.step()
    queued = generator.submit(SampleRequest(prompt=PROMPTS[8], params=params))
    assert [generator.cancel(ticket) for ticket in (runs, waits, queued)] == [True] * 3
    assert generator.is_idle
    assert generator.step() == []
    assert not generator.cancel(runs)
    assert not any(slab.rows for slab in generator.cache.slabs.values())


def test_an_adapter_unloaded_while_it_runs_serves_its_sequence_to_the_end(
    generator: Generator, folders: list[Path]
) -> None:
    generator.load_adapter("short-lived", folders[1])
    expected = run_one(generator, PROMPTS[3], GREEDY, "short-lived")
    request = SampleRequest(prompt=PROMPTS[3], params=GREEDY)
    ticket = generator.submit(request, adapter="short-lived")
    generator.step()
    generator.unload_adapter("short-lived")
    generator.load_adapter("short-lived", folders[0])
    assert finish(generator, ticket).sequences[0].tokens == expected.tokens
    generator.unload_adapter("short-lived")
    assert not generator.adapters.head.pairs
