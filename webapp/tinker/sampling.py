"""What a sampling request may contain, and the call it becomes."""

from collections.abc import Mapping
from typing import Any

from webapp.accounts.models import Actor
from webapp.checkpoints.services import find_loadable
from webapp.core.errors import NotFound, UserError
from webapp.deployments.calls import open_sampling_session, submit_call
from webapp.deployments.models import SamplingCall, SamplingSession
from webapp.fleet.models import BaseModel
from webapp.tinker.fields import LARGEST, Fields
from webapp.tinker.services import find_offered, find_session

MAX_SAMPLES = 512

# Asked for by flags that are 0 or absent otherwise.
NOT_OFFERED = (
    "topk_prompt_logprobs",
    "topk_sample_logprobs",
    "target_prompt_logprobs",
    "prompt_alt_tokens_k",
    "prompt_logprobs_last_n",
)


def create_session(*, actor: Actor, fields: Fields) -> SamplingSession:
    session = find_session(actor, fields.text("session_id"))
    if session.finished_at is not None:
        raise UserError("This session has ended: open another one.", field="session_id")
    seq_id = fields.whole("sampling_session_seq_id")
    if fields.has("model_path"):
        checkpoint = find_loadable(actor, fields.text("model_path"))
        return open_sampling_session(
            actor=actor, session=session, seq_id=seq_id, checkpoint=checkpoint
        )
    if not fields.has("base_model"):
        raise UserError("base_model is required where there is no model_path.")
    base_model = find_offered(fields.text("base_model"))
    return open_sampling_session(actor=actor, session=session, seq_id=seq_id, base_model=base_model)


def find_sampler(actor: Actor, sampler_id: str) -> SamplingSession:
    found = SamplingSession.objects.visible_to(actor).filter(pk=sampler_id)
    sampler = found.select_related("base_model", "checkpoint__run", "project", "session").first()
    if sampler is None:
        raise NotFound(f"There is no sampling session {sampler_id[:100]}.")
    return sampler


def submit_sample(*, actor: Actor, fields: Fields) -> tuple[SamplingCall, list[str]]:
    """The call, and an id for each of its samples that stays the same when it is repeated."""
    sampler = find_sampler(actor, fields.text("sampling_session_id"))
    if sampler.session.finished_at is not None:
        raise UserError("The session of this sampling client has ended: open another one.")
    check_has_weights(sampler)
    seq_id = fields.whole("seq_id")
    payload = read_request(fields, sampler.base_model)
    call = submit_call(
        project=sampler.project,
        purpose=SamplingCall.Purpose.TINKER,
        base_model=sampler.base_model,
        checkpoint=sampler.checkpoint,
        sampling_session=sampler,
        seq_id=seq_id,
        payload=payload,
    )
    return call, [f"{sampler.pk}/{seq_id}/{index}" for index in range(payload["num_samples"])]


def check_has_weights(sampler: SamplingSession) -> None:
    checkpoint = sampler.checkpoint
    if checkpoint is not None and checkpoint.deleted_at is not None:
        raise UserError(
            f"The checkpoint {checkpoint.name} of this sampling client was deleted: create another"
            " one, from a checkpoint that there is."
        )


def read_request(fields: Fields, base_model: BaseModel) -> dict[str, Any]:
    for name in NOT_OFFERED:
        if fields.values.get(name):
            raise UserError(f"{name} is not offered by this installation yet.", field=name)
    prompt = read_prompt(fields, base_model.vocab_size)
    params = read_params(fields.inner("sampling_params"))
    check_length(len(prompt), params["max_tokens"], base_model.context_tokens)
    return {
        "prompt": prompt,
        "num_samples": fields.whole("num_samples", 1, least=1, most=MAX_SAMPLES),
        "params": params,
        "prompt_logprobs": fields.flag("prompt_logprobs", False),
    }


def read_prompt(fields: Fields, vocab_size: int) -> list[int]:
    tokens: list[int] = []
    for index, chunk in enumerate(fields.inner("prompt").list_of("chunks", dict)):
        kind = chunk.get("type", "encoded_text")
        if kind != "encoded_text":
            raise UserError(
                f"prompt.chunks.{index} is of type {kind}; the models of this installation read"
                " text only, so send encoded_text."
            )
        tokens += Fields(chunk, f"prompt.chunks.{index}.").list_of("tokens", int)
    if not tokens:
        raise UserError("The prompt is empty: send at least one token.", field="prompt")
    check_ids(tokens, vocab_size)
    return tokens


def check_ids(tokens: list[int], vocab_size: int) -> None:
    if min(tokens) >= 0 and max(tokens) < vocab_size:
        return
    position = next(i for i, token in enumerate(tokens) if not 0 <= token < vocab_size)
    raise UserError(
        f"prompt: {tokens[position]} at position {position} is no token of this model: ids go"
        f" from 0 to {vocab_size - 1}.",
        field="prompt",
    )


def read_params(given: Fields) -> dict[str, Any]:
    top_k = given.whole("top_k", -1, least=-1)
    params: dict[str, Any] = {
        "max_tokens": given.whole("max_tokens", least=1) if given.has("max_tokens") else None,
        "temperature": given.number("temperature", 1.0),
        "top_k": top_k or -1,
        "top_p": given.number("top_p", 1.0),
        "seed": given.whole("seed", least=-LARGEST) if given.has("seed") else None,
        "stop": read_stop(given.values),
    }
    if params["temperature"] < 0:
        raise UserError("sampling_params.temperature is negative: send 0 or more.")
    if not 0 < params["top_p"] <= 1:
        raise UserError("sampling_params.top_p lies above 0 and up to 1.")
    return params


def read_stop(given: Mapping[str, Any]) -> list[str] | list[int] | None:
    """None: the end token stops. An empty list: nothing does."""
    stop = given.get("stop")
    if isinstance(stop, str):
        return [stop]
    kinds = {type(item) for item in stop} if isinstance(stop, list) else set()
    if stop is None or stop == [] or kinds in ({str}, {int}):
        return stop
    raise UserError("sampling_params.stop is a string, a list of strings or a list of token ids.")


def check_length(num_prompt: int, max_tokens: int | None, limit: int) -> None:
    if max_tokens is None:
        if num_prompt >= limit:
            raise UserError(
                f"The prompt leaves no room in the model's context window: {num_prompt} of {limit}"
            )
    elif num_prompt + max_tokens > limit:
        raise UserError(
            "Prompt length plus max_tokens exceeds the model's context window: "
            f"{num_prompt} + {max_tokens} > {limit}"
        )
