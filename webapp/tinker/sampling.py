"""What a sampling request may contain, and the call it becomes."""

from collections.abc import Mapping
from typing import Any

from training.sample_requests import check_sample, read_targets
from training.types import SampleRequest, SamplingParams, TargetTokens
from webapp.accounts.models import Actor
from webapp.checkpoints.services import find_loadable
from webapp.core.errors import NotFound, UserError
from webapp.core.fields import LARGEST, Fields
from webapp.deployments.calls import open_sampling_session, submit_call
from webapp.deployments.models import SamplingCall, SamplingSession
from webapp.deployments.turns import check_room
from webapp.fleet.models import BaseModel
from webapp.runs.clients import find_session
from webapp.tinker.sample_payloads import write_payload
from webapp.tinker.services import find_offered

MAX_SAMPLES = 512
TARGETS = "target_prompt_logprobs"
# Of a sampling session and what it is of: this is read for each of thousands of samples.
NEEDED = (
    *("project__id", "session__finished_at", "checkpoint__name", "checkpoint__deleted_at"),
    *("checkpoint__run__id", "base_model__vocab_size", "base_model__context_tokens"),
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


def find_sampler(actor: Actor, sampler_id: str, *columns: str) -> SamplingSession:
    """With its columns here, all of them where none is named."""
    found = SamplingSession.objects.visible_to(actor).filter(pk=sampler_id)
    whole = found.select_related("base_model", "checkpoint__run", "project", "session")
    sampler = (whole.only(*columns) if columns else whole).first()
    if sampler is None:
        raise NotFound(f"There is no sampling session {sampler_id[:100]}.")
    return sampler


def submit_sample(*, actor: Actor, fields: Fields) -> tuple[SamplingCall, list[str]]:
    """The call, and an id for each of its samples that stays the same when it is repeated."""
    sampler = find_sampler(actor, fields.text("sampling_session_id"), *NEEDED)
    if sampler.session.finished_at is not None:
        raise UserError("The session of this sampling client has ended: open another one.")
    check_has_weights(sampler)
    seq_id = fields.whole("seq_id")
    request = read_request(fields, sampler.base_model)
    check_room(sampler.session_id)
    call = submit_call(
        project=sampler.project,
        purpose=SamplingCall.Purpose.TINKER,
        base_model=sampler.base_model,
        checkpoint=sampler.checkpoint,
        sampling_session=sampler,
        seq_id=seq_id,
        payload=write_payload(request),
    )
    return call, [f"{sampler.pk}/{seq_id}/{index}" for index in range(request.num_samples)]


def check_has_weights(sampler: SamplingSession) -> None:
    checkpoint = sampler.checkpoint
    if checkpoint is not None and checkpoint.deleted_at is not None:
        raise UserError(
            f"The checkpoint {checkpoint.name} of this sampling client was deleted: create another"
            " one, from a checkpoint that there is."
        )


def read_request(fields: Fields, base_model: BaseModel) -> SampleRequest:
    """Raises UserError for what is no such field, InvalidInput for what cannot be computed."""
    # Nothing more has to be recorded: the log-probabilities that are always returned are what
    # our stable_reinforce needs of the time of sampling.
    fields.flag("record_stability_info", False)
    last_n = "prompt_logprobs_last_n"
    targets = fields.inner(TARGETS) if fields.has(TARGETS) else None
    request = SampleRequest(
        prompt=read_prompt(fields),
        params=read_params(fields.inner("sampling_params")),
        num_samples=fields.whole("num_samples", 1, least=1, most=MAX_SAMPLES),
        prompt_logprobs=fields.flag("prompt_logprobs", False),
        prompt_logprobs_last_n=fields.whole(last_n) if fields.has(last_n) else None,
        topk_prompt_logprobs=fields.whole("topk_prompt_logprobs", 0),
        topk_sample_logprobs=fields.whole("topk_sample_logprobs", 0),
        target_prompt_logprobs=read_target_tokens(targets) if targets else None,
        prompt_alt_tokens_k=fields.whole("prompt_alt_tokens_k", 0),
    )
    check_sample(request, base_model.vocab_size, base_model.context_tokens)
    return request


def read_prompt(fields: Fields) -> list[int]:
    tokens: list[int] = []
    for index, chunk in enumerate(fields.inner("prompt").list_of("chunks", dict)):
        kind = chunk.get("type", "encoded_text")
        if kind != "encoded_text":
            raise UserError(
                f"prompt.chunks.{index} is of type {kind}; the models of this installation read"
                " text only, so send encoded_text."
            )
        tokens += Fields(chunk, f"prompt.chunks.{index}.").list_of("tokens", int)
    return tokens


def read_target_tokens(given: Fields) -> TargetTokens:
    if given.text("dtype", "int64") != "int64":
        raise UserError(f"{TARGETS}.dtype is not int64: token ids are whole numbers.")
    if len(given.list_of("shape", int)) != 2:
        raise UserError(f"{TARGETS}.shape has two numbers: the prompt's length less one, and K.")
    sparse = [name for name in ("sparse_crow_indices", "sparse_col_indices") if given.has(name)]
    return read_targets({name: given.list_of(name, int) for name in ("shape", "data", *sparse)})


def read_params(given: Fields) -> SamplingParams:
    return SamplingParams(
        max_tokens=given.whole("max_tokens", least=1) if given.has("max_tokens") else None,
        temperature=given.number("temperature", 1.0),
        top_k=given.whole("top_k", -1, least=-1) or -1,
        top_p=given.number("top_p", 1.0),
        seed=given.whole("seed", least=-LARGEST) if given.has("seed") else None,
        stop=read_stop(given.values),
    )


def read_stop(given: Mapping[str, Any]) -> tuple[str, ...] | tuple[int, ...] | None:
    """None: the end token stops. An empty one: nothing does."""
    stop = given.get("stop")
    if stop is None:
        return None
    if isinstance(stop, str):
        return (stop,)
    if isinstance(stop, list) and {type(item) for item in stop} in (set(), {str}, {int}):
        return tuple(stop)
    raise UserError("sampling_params.stop is a string, a list of strings or a list of token ids.")
