"""The built-in sampler: one base model, many adapters, sequences that join and leave any step.

Each step is one pass over one packed row: the next token of every live sequence and a bounded
piece of the prompts that wait. Shapes: T tokens of the row, D hidden size, R rows, V vocabulary.
"""

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from training.architectures import find_context, read_architecture
from training.engine.adapters import Adapters
from training.engine.calls import Call, Finished, Listener, LoadedAdapter, Sample, Span
from training.engine.kvcache import KvCache, Row, bytes_per_token
from training.engine.lora import Slice
from training.engine.noting import note_both, rank_samples
from training.engine.packed_linear import can_pack, pack_linears
from training.engine.peft_folder import read_pairs
from training.engine.prefixes import find_loan, settle_loan
from training.engine.prompt_scores import PromptScores
from training.engine.route_log import check_wish, logging_routes
from training.engine.sampling import (
    StopRule,
    TextWatch,
    choose_tokens,
    find_end_ids,
    logprobs_of,
    seed_draws,
    temper,
)
from training.engine.step_attention import ATTENTION, Chunk, StepAttention
from training.errors import InvalidInput
from training.sample_requests import check_sample, count_allowed
from training.types import SampleOutput, SampleRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one step and all live sequences may take."""

    sequences: int = 64
    cache_bytes: int = 4 << 30
    prompt_tokens: int = 512  # a step's share of prompts where nothing else runs
    prompt_tokens_between: int = 96  # where sequences wait for their next token


class Generator:
    """Owned by one thread. `submit`, then `step` until what it returns has the ticket."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: Tokenizer | None, limits: Limits | None = None
    ) -> None:
        self.model = model
        self.model.train(False)
        self.model.requires_grad_(False)
        self.model.set_attn_implementation(ATTENTION)
        self.tokenizer = tokenizer
        self.limits = limits or Limits()
        self.adapters = Adapters(model)
        if can_pack(model):
            pack_linears(model, self.adapters)
        self.loaded: dict[str, LoadedAdapter] = {}
        self.context: int = find_context(model.config.to_dict())
        self.vocabulary: int = model.config.vocab_size
        self.end_ids = find_end_ids(model)
        self.cache = KvCache()
        self.cache_tokens = self.limits.cache_bytes // bytes_per_token(model)
        self.waiting: deque[Call] = deque()
        self.reading: list[Call] = []
        self.running: list[Sample] = []
        self.finished: list[Finished] = []
        self.serial = itertools.count(1)

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        limits: Limits | None = None,
    ) -> "Generator":
        read_architecture(path)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        nn.Module.to(model, device)
        file = path / "tokenizer.json"
        return cls(model, Tokenizer.from_file(str(file)) if file.is_file() else None, limits)

    @property
    def is_idle(self) -> bool:
        return not (self.waiting or self.reading or self.running or self.finished)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Serve a PEFT folder under a name; a name stands for one adapter for ever."""
        if name in self.loaded:
            raise InvalidInput(f"adapter {name} is already loaded: give each version its own name")
        adapter = LoadedAdapter(f"{name}#{next(self.serial)}")
        for layer, pair in read_pairs(folder, self.adapters).items():
            self.adapters.layers[layer][1].pairs[adapter.key] = pair
        self.loaded[name] = adapter

    def unload_adapter(self, name: str) -> None:
        """New requests no longer find it; those that run keep it to their end."""
        if name not in self.loaded:
            raise InvalidInput(f"adapter {name} is not loaded")
        adapter = self.loaded.pop(name)
        adapter.is_retired = True
        self._drop_unused(adapter)

    def submit(
        self,
        request: SampleRequest,
        *,
        adapter: str | None = None,
        also_stop: frozenset[int] = frozenset(),
        ignore_end: bool = False,
        listener: Listener | None = None,
    ) -> int:
        """Queue a request and return its ticket. Raises InvalidInput where it can never run."""
        check_sample(request, self.vocabulary, self.context)
        check_wish(request, self.adapters.routing)
        if adapter is not None and adapter not in self.loaded:
            raise InvalidInput(f"adapter {adapter} is not loaded: load it first")
        end_ids = frozenset() if ignore_end else self.end_ids
        stop = StopRule.of(request.params, end_ids, also_stop)
        if stop.strings and self.tokenizer is None:
            raise InvalidInput("stop strings need a tokenizer.json beside the model: use token ids")
        call = Call(
            ticket=next(self.serial),
            request=request,
            adapter=self.loaded[adapter] if adapter is not None else None,
            stop=stop,
            max_tokens=count_allowed(request, self.context),
            listener=listener,
            waiting=list(range(request.num_samples)),
            scores=PromptScores(request),
        )
        if call.adapter:
            call.adapter.users += 1
        self.waiting.append(call)
        return call.ticket

    @torch.inference_mode()
    def cancel(self, ticket: int) -> bool:
        """Forget a request at once. False: it is not here any more."""
        call = next((call for call in self._calls() if call.ticket == ticket), None)
        if call is not None:
            self._remove(call)
        return call is not None

    @torch.inference_mode()
    def step(self) -> list[Finished]:
        """One pass. Returns the requests that are complete; [] also where nothing was to do."""
        self._admit()
        self._settle_loans()
        spans = sorted(self._plan(), key=lambda span: span.adapter_key)
        if spans:
            hidden_TD = self._forward(spans)
            self._settle_loans()  # before a lender that ends with this step has left
            self._score_prompts(spans, hidden_TD)
            self._extend(spans, hidden_TD)
        finished, self.finished = self.finished, []
        return finished

    def _calls(self) -> list[Call]:
        live = {sample.call.ticket: sample.call for sample in self.running}
        return [*self.waiting, *self.reading, *live.values()]

    def _count_room(self, call: Call) -> int:
        """How many of the call's samples may become live now; one always may, where all is idle."""
        live = [*self.reading, *(sample.call for sample in self.running)]
        if not live:
            return max(1, min(self.limits.sequences, self.cache_tokens // call.cost))
        free_tokens = self.cache_tokens - sum(each.cost for each in live)
        return max(0, min(self.limits.sequences - len(live), free_tokens // call.cost))

    def _admit(self) -> None:
        while self.waiting and self._count_room(self.waiting[0]):
            call = self.waiting.popleft()
            call.row = self.cache.add(len(call.request.prompt) + 1)
            call.loan = find_loan(call, self._live_rows())
            self.reading.append(call)

    def _live_rows(self) -> list[tuple[Call, Row]]:
        """One for each call: they all begin with their call's prompt."""
        rows = {sample.call.ticket: (sample.call, sample.row) for sample in self.running}
        return [*((call, call.row) for call in self.reading if call.row), *rows.values()]

    def _settle_loans(self) -> None:
        for call in self.reading:
            settle_loan(self.cache, call)

    def _plan(self) -> list[Span]:
        for sample in self.running:
            self.cache.reserve(sample.row, sample.row.length + 1)
        spans = [
            Span(owner=sample, row=sample.row, tokens=sample.tokens[-1:]) for sample in self.running
        ]
        busy, idle = self.limits.prompt_tokens_between, self.limits.prompt_tokens
        budget = busy if self.running else idle
        for call in self.reading:
            if budget > 0 and call.row is not None and call.loan is None:
                begin = call.row.length
                tokens = call.request.prompt[begin : begin + budget]
                spans.append(Span(owner=call, row=call.row, tokens=tokens))
                budget -= len(tokens)
        return spans

    def _forward(self, spans: Sequence[Span]) -> Tensor:
        stops = list(itertools.accumulate(len(span.tokens) for span in spans))
        chunks = [
            Chunk(row=span.row, start=stop - len(span.tokens), stop=stop)
            for span, stop in zip(spans, stops, strict=True)
        ]
        tokens = [token for span in spans for token in span.tokens]
        places = [
            place
            for span in spans
            for place in range(span.row.length, span.row.length + len(span.tokens))
        ]
        device = self.adapters.device
        slices = [
            Slice(span.adapter_key, chunk.start, chunk.stop)
            for span, chunk in zip(spans, chunks, strict=True)
        ]
        logging = logging_routes(self.adapters.routing, spans)
        with self.adapters.serve(merge_slices(slices)), logging:
            hidden_1TD: Tensor = self.model.base_model(
                input_ids=torch.tensor([tokens], device=device),
                position_ids=torch.tensor([places], device=device),
                use_cache=False,
                step=StepAttention(chunks, device),
            ).last_hidden_state
        for span in spans:
            span.row.length += len(span.tokens)
        return hidden_1TD[0]

    def _project(self, hidden_RD: Tensor, keys: Sequence[str]) -> Tensor:
        """Logits in float32 of rows that the adapters of `keys` own; equal keys lie together."""
        slices = [Slice(key, index, index + 1) for index, key in enumerate(keys)]
        with self.adapters.serve(merge_slices(slices)):
            outputs_RV: Tensor = self.adapters.head(hidden_RD)
        return self.adapters.logit_rule.apply_(outputs_RV.float())

    def _score_prompts(self, spans: Sequence[Span], hidden_TD: Tensor) -> None:
        stop = 0
        for span in spans:
            start, stop = stop, stop + len(span.tokens)
            if isinstance(span.owner, Call):
                begin = span.row.length - len(span.tokens)
                project = partial(self._project_for, span.adapter_key)
                span.owner.scores.read(begin, hidden_TD[start:stop], project)

    def _project_for(self, key: str, hidden_RD: Tensor) -> Tensor:
        return self._project(hidden_RD, [key] * len(hidden_RD))

    def _extend(self, spans: Sequence[Span], hidden_TD: Tensor) -> None:
        """One more token for every sample that runs, and the first for those that begin."""
        lasts = itertools.accumulate(len(span.tokens) for span in spans)
        ready = [
            (last - 1, span, samples)
            for last, span in zip(lasts, spans, strict=True)
            if (samples := self._samples_of(span))
        ]
        if not ready:
            return
        rows = torch.tensor([row for row, _, _ in ready], device=hidden_TD.device)
        logits_RV = self._project(hidden_TD[rows], [span.adapter_key for _, span, _ in ready])
        counts = [len(samples) for _, _, samples in ready]
        if sum(counts) > len(ready):
            repeats = torch.tensor(counts, device=logits_RV.device)
            logits_RV = logits_RV.repeat_interleave(repeats, 0)
        self._choose([sample for _, _, samples in ready for sample in samples], logits_RV)

    def _samples_of(self, span: Span) -> list[Sample]:
        """Whose next token the span's last row decides: nobody's while a prompt is incomplete."""
        if isinstance(span.owner, Sample):
            return [span.owner]
        if span.row.length < len(span.owner.request.prompt):
            return []
        return self._begin_samples(span.owner, span.row)

    def _begin_samples(self, call: Call, row: Row) -> list[Sample]:
        """The prompt's row becomes the first sample's; as many others as have room get copies."""
        self.reading.remove(call)
        call.row = None
        count = max(1, self._count_room(call))
        indices, call.waiting = call.waiting[:count], call.waiting[count:]
        rows = [row, *(self.cache.fork(row) for _ in indices[1:])]
        begun = [
            Sample(
                call=call,
                index=index,
                row=place,
                draws=seed_draws(call.request.params.seed, index),
                watch=self._watch(call),
            )
            for index, place in zip(indices, rows, strict=True)
        ]
        self.running += begun
        if call.waiting:
            self.waiting.appendleft(call)
        return begun

    def _watch(self, call: Call) -> TextWatch | None:
        if not call.stop.strings or self.tokenizer is None:
            return None
        return TextWatch(self.tokenizer, call.stop.strings)

    def _choose(self, samples: Sequence[Sample], logits_RV: Tensor) -> None:
        params = [sample.call.request.params for sample in samples]
        raw_RV, logits_RV = logits_RV, temper(logits_RV, [each.temperature for each in params])
        tokens_R = choose_tokens(logits_RV, params, [sample.draws.random() for sample in samples])
        logprobs = logprobs_of(logits_RV, tokens_R).tolist()
        rank_samples(samples, logits_RV)
        note_both(samples, raw_RV, logits_RV, tokens_R)
        for sample, token, logprob in zip(samples, tokens_R.tolist(), logprobs, strict=True):
            if sample not in self.running:
                continue  # another sample of its request has just failed
            if logprob - logprob != 0:
                self._fail(sample.call)
            else:
                self._append(sample, token, logprob)

    def _append(self, sample: Sample, token: int, logprob: float) -> None:
        sample.tokens.append(token)
        sample.logprobs.append(logprob)
        call, reason = sample.call, sample.find_stop_reason()
        sample.tell(reason)
        if reason is None:
            return
        self.running.remove(sample)
        self.cache.remove(sample.row)
        call.samples[sample.index] = sample.make_sequence(reason)
        if len(call.samples) == call.request.num_samples:
            self._finish(call, call.output)

    def _fail(self, call: Call) -> None:
        self._remove(call)
        text = "the weights answer with logits that are not finite: has the training run diverged?"
        self.finished.append(Finished(ticket=call.ticket, result=InvalidInput(text)))

    def _finish(self, call: Call, output: SampleOutput) -> None:
        self._release(call)
        self.finished.append(Finished(ticket=call.ticket, result=output))

    def _remove(self, call: Call) -> None:
        for sample in [each for each in self.running if each.call is call]:
            self.running.remove(sample)
            self.cache.remove(sample.row)
        if call in self.waiting:
            self.waiting.remove(call)
        if call in self.reading:
            self.reading.remove(call)
        if call.row is not None:
            self.cache.remove(call.row)
        self._release(call)

    def _release(self, call: Call) -> None:
        if call.adapter:
            call.adapter.users -= 1
            self._drop_unused(call.adapter)

    def _drop_unused(self, adapter: LoadedAdapter) -> None:
        if adapter.is_retired and not adapter.users:
            self.adapters.drop(adapter.key)


def merge_slices(slices: Sequence[Slice]) -> list[Slice]:
    """Neighbours of one adapter become one slice; rows of the base model need none."""
    groups = itertools.groupby(slices, key=lambda each: each.run)
    runs = ((run, list(group)) for run, group in groups if run)
    return [Slice(run, group[0].start, group[-1].stop) for run, group in runs]
