"""A request of these dialects becomes sampling calls."""

from collections.abc import Mapping
from typing import Any

from training.sample_requests import check_sample
from webapp.accounts.models import Actor
from webapp.deployments.models import SamplingCall
from webapp.openai.forms import Form
from webapp.openai.targets import Target, find_target
from webapp.tinker.sample_payloads import read_payload


def make_calls(actor: Actor, form: Form) -> list[SamplingCall]:
    """A call for each prompt, in the form's order. Nothing is written yet."""
    target = find_target(actor, form.model)
    return [
        SamplingCall(
            project=actor.project,
            purpose=form.purpose,
            base_model=target.base_model,
            checkpoint=target.checkpoint,
            deployment=target.deployment,
            is_streamed=form.is_streamed,
            payload=check_payload(form, payload, target),
        )
        for payload in form.payloads
    ]


def check_payload(form: Form, payload: Mapping[str, Any], target: Target) -> Mapping[str, Any]:
    """What comes as token ids is checked now; of texts the sampler knows how long they are."""
    if "prompt" not in payload:
        return payload
    model, prompt, params = target.base_model, payload["prompt"], payload["params"]
    if form.purpose == SamplingCall.Purpose.FIRETITAN:  # whose limit is up to the context
        room = max(1, model.context_tokens - len(prompt))
        params = {**params, "max_tokens": min(params["max_tokens"], room)}
    check_sample(read_payload(payload, prompt, params), model.vocab_size, model.context_tokens)
    return {**payload, "params": params}
