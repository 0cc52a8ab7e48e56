"""From a call's payload to token ids, and from its tokens to whom the answer belongs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any

from django.db import transaction

from training.data.tokenizer import ChatTokenizer, Message
from training.data.tool_calls import check_tools
from training.recipes.graders import KINDS
from training.types import SampleOutput, SampleRequest
from webapp.deployments import calls
from webapp.deployments.models import HotLoad, Replica, SamplingCall
from webapp.deployments.queries import name_engine
from webapp.evals.known import make_key
from webapp.evals.models import EvalSuite, Evaluation
from webapp.evals.services import record_result, settle
from webapp.runs.samples import record_sample
from webapp.tinker.sample_payloads import read_payload
from webapp.tinker.wire_samples import encode_sample_output
from webapp.wire.passes import JSON, PROTOBUF
from workers.describing import CUT, Style
from workers.grade import grade_with_notes
from workers.suite_items import make_graded, write_grades

Purpose = SamplingCall.Purpose


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One call's output with its texts. `load` None: the base model answered.

    An SDK's answer has no `sequences`: its client makes its own texts of the tokens.
    """

    request: SampleRequest
    output: SampleOutput
    sequences: Sequence[Mapping[str, Any]]
    prompt: Mapping[str, Any]  # empty: nobody asked to have it repeated
    load: HotLoad | None
    first_token_at: datetime | None  # where somebody watched
    template: str  # digest of the chat template that made the prompt; empty: it came as tokens
    replica: Replica | None = None  # which server answered

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt)


def make_request(call: SamplingCall, tokenizer: ChatTokenizer) -> SampleRequest:
    payload = call.payload
    prompt, params = payload.get("prompt"), dict(payload.get("params") or {})
    if "text" in payload:
        prompt = tokenizer.encode_text(payload["text"])
        if call.purpose == Purpose.FIRETITAN:
            limit_to_context(params, call, prompt)
    elif prompt is None:
        prompt = encode_messages(payload["messages"], payload.get("tools"), tokenizer)
        # Who sends messages cannot count tokens: the limit is theirs up to the model's own.
        limit_to_context(params, call, prompt)
    return read_payload(payload, prompt, params)


def limit_to_context(params: dict[str, Any], call: SamplingCall, prompt: Sequence[int]) -> None:
    room = max(1, call.base_model.context_tokens - len(prompt))
    params["max_tokens"] = min(params.get("max_tokens") or room, room)


def encode_messages(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    tokenizer: ChatTokenizer,
) -> list[int]:
    if tools:
        check_tools(tokenizer.template)
    text = tokenizer.apply_template(messages, add_generation_prompt=True, tools=tools)
    return tokenizer.encode(text)


def make_answer(
    call: SamplingCall,
    request: SampleRequest,
    output: SampleOutput,
    tokenizer: ChatTokenizer,
    load: HotLoad | None = None,
    first_token_at: datetime | None = None,
) -> Answer:
    style = Style.of(call, request, tokenizer)
    return Answer(
        request=request,
        output=output,
        sequences=[
            style.describe_sequence(sequence)
            for sequence in output.sequences
            if call.purpose != Purpose.TINKER
        ],
        prompt=style.describe_prompt(output) if call.payload.get("echo") else {},
        load=load,
        first_token_at=first_token_at,
        template="" if "messages" not in call.payload else digest_template(tokenizer),
    )


def digest_template(tokenizer: ChatTokenizer) -> str:
    return sha256((tokenizer.template or "").encode()).hexdigest()


def encode_answer(call: SamplingCall, answer: Answer) -> tuple[bytes, str]:
    """As the caller reads it: protobuf for SDK clients, JSON for everybody else."""
    if call.purpose == Purpose.TINKER:
        return encode_sample_output(answer.output, answer.request), PROTOBUF
    load = answer.load
    described = {
        "sequences": answer.sequences,
        "prompt_tokens": answer.num_prompt_tokens,
        "adapter": load.adapter_name if load else None,
        "digest": load.digest if load else call.base_model.digest,
        "engine": name_engine(answer.replica) if answer.replica else "",
    }
    if call.purpose in CUT:
        described |= {
            "cached_tokens": answer.output.prompt_cache_hit_tokens,
            "prompt": answer.prompt,
        }
    if answer.output.prompt_logprobs is not None:
        described["prompt_logprobs"] = answer.output.prompt_logprobs
    return json.dumps(described).encode(), JSON


def store_answer(call: SamplingCall, answer: Answer, worker: str) -> None:
    """The call's result, and its copy where it belongs, together or not at all."""
    result, content_type = encode_answer(call, answer)
    evaluation = find_evaluation(call)
    columns = _describe_result(evaluation, call, answer) if evaluation else {}
    with transaction.atomic():
        stored = calls.finish_call(
            call,
            worker=worker,
            result=result,
            content_type=content_type,
            hot_load=answer.load,
            num_tokens=count_tokens(answer),
            first_token_at=answer.first_token_at,
        )
        if stored and call.purpose == Purpose.RUN_SAMPLE:
            _keep_sample(call, answer)
        elif stored and evaluation:
            served = _describe_served(call, answer)
            record_result(evaluation, **find_slot(call), served=served, **columns)
    if evaluation:
        settle(evaluation)


def count_tokens(answer: Answer) -> dict[str, int]:
    return {
        "num_prompt_tokens": answer.num_prompt_tokens,
        "num_cached_tokens": answer.output.prompt_cache_hit_tokens,
        "num_sampled_tokens": sum(len(each.tokens) for each in answer.output.sequences),
    }


def store_failure(call: SamplingCall, error: str, category: str, worker: str) -> None:
    evaluation = find_evaluation(call)
    with transaction.atomic():
        failed = calls.fail_call(call, worker=worker, error=error, category=category)
        if failed and call.purpose == Purpose.RUN_SAMPLE:
            _record_sample(call, digest="", error=error)
        elif failed and evaluation:
            record_result(evaluation, **find_slot(call), served={}, error=error)
    if evaluation:
        settle(evaluation)


def find_evaluation(call: SamplingCall) -> Evaluation | None:
    """Without the items: they may be megabytes, and this is asked for every answer."""
    if call.purpose != Purpose.EVALUATION:
        return None
    whole = Evaluation.objects.select_related("suite").defer("suite__items")
    return whole.get(pk=call.about["evaluation"])


def _keep_sample(call: SamplingCall, answer: Answer) -> None:
    sequence = answer.sequences[0]
    tokens = zip(sequence["pieces"], sequence["tokens"], sequence["logprobs"], strict=True)
    _record_sample(
        call,
        completion=sequence["text"],
        tokens=[{"text": text, "id": token, "logprob": value} for text, token, value in tokens],
        stop_reason=sequence["stop_reason"],
        digest=find_digest(call, answer),
        error="",
    )


def find_digest(call: SamplingCall, answer: Answer) -> str:
    """Of the weights that answered, as they were found when they were loaded."""
    return answer.load.digest if answer.load else call.base_model.digest


def _record_sample(call: SamplingCall, **columns: Any) -> None:
    assert call.run is not None  # whoever submits samples of a run says of which
    record_sample(
        call.run,
        step=call.about["step"],
        prompt_index=call.about["prompt_index"],
        prompt=call.payload.get("messages", []),
        checkpoint=call.checkpoint,
        **columns,
    )


def find_slot(call: SamplingCall) -> dict[str, int]:
    return {"index": call.about["index"], "sample": call.about.get("sample", 0)}


def _describe_result(evaluation: Evaluation, call: SamplingCall, answer: Answer) -> dict[str, Any]:
    sequence, slot = answer.sequences[0], find_slot(call)
    digest = find_digest(call, answer)
    suite = read_suite(evaluation.suite_id)
    grades = grade_item(suite, slot["index"], sequence["text"]) if is_graded_here(suite) else {}
    return {
        "completion": sequence["text"],
        "num_tokens": len(sequence["tokens"]),
        "stop_reason": sequence["stop_reason"],
        "checkpoint": call.checkpoint,
        "digest": digest,
        "content_key": make_key(digest, call.payload, slot["sample"]),
        **grades,
    }


def _describe_served(call: SamplingCall, answer: Answer) -> dict[str, Any]:
    load, replica = answer.load, answer.replica
    return {
        "adapter": load.adapter_name if load else None,
        "digest": load.digest if load else call.base_model.digest,
        "server": f"{replica}/{replica.start}" if replica else call.worker,
        "template": answer.template,
    }


@lru_cache(maxsize=8)
def read_suite(suite_id: str) -> EvalSuite:
    """A suite that is evaluated has been built, and never changes again."""
    return EvalSuite.objects.get(pk=suite_id)


def is_graded_here(suite: EvalSuite) -> bool:
    """Graders that take their time have a task of their own."""
    return all(KINDS[grader["name"]].place == "inline" for grader in suite.graders)


def grade_item(suite: EvalSuite, index: int, completion: str) -> dict[str, Any]:
    """The columns of a result that its graders write."""
    answer = make_graded(suite.items[index], completion)
    return write_grades(grade_with_notes(suite.graders, [answer])[0])
