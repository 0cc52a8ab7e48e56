"""The one write of these dialects: a request becomes sampling calls."""

from training.sample_requests import check_sample
from webapp.accounts.models import Actor
from webapp.deployments.calls import submit_calls
from webapp.deployments.models import SamplingCall
from webapp.openai.forms import Form
from webapp.openai.targets import Target, find_target
from webapp.tinker.sample_payloads import read_payload


def submit_form(actor: Actor, form: Form) -> list[SamplingCall]:
    """A call for each prompt, in the form's order."""
    target = find_target(actor, form.model)
    check_payloads(form, target)
    calls = [
        SamplingCall(
            project=actor.project,
            purpose=form.purpose,
            base_model=target.base_model,
            checkpoint=target.checkpoint,
            deployment=target.deployment,
            is_streamed=form.is_streamed,
            payload=payload,
        )
        for payload in form.payloads
    ]
    submit_calls(calls)
    return calls


def check_payloads(form: Form, target: Target) -> None:
    """What comes as token ids is checked now; of texts the sampler knows how long they are."""
    model = target.base_model
    for payload in form.payloads:
        if "prompt" in payload:
            request = read_payload(payload, payload["prompt"], payload["params"])
            check_sample(request, model.vocab_size, model.context_tokens)
