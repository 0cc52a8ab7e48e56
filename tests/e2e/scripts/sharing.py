"""Weights that others use: published, read with a key, copied to a project; and inflight clients.

The arguments are another project of this user, and the key of somebody who is in neither.
"""

import os
import sys

from program import connect, make_datum, open_model, read_logprobs, report, step
from tinker import NotFoundError, ServiceClient, types

project_id, strangers_key = sys.argv[1:]
service = connect()
rest = service.create_rest_client()
model = open_model(service)
datum = make_datum(1)
step(model, datum)
saved = model.save_state("final").result().path
scored = read_logprobs(model.forward([datum], "cross_entropy").result())[0]

copied = rest.copy_weights(saved, project_id, ttl_seconds=7200).result()
copied_by_project = ServiceClient(project_id=project_id).copy_weights(saved).result()

stranger = ServiceClient(api_key=strangers_key)


def load_and_score(**options: str) -> list[float]:
    theirs = stranger.create_training_client_from_state(saved, **options).result()
    return read_logprobs(theirs.forward([datum], "cross_entropy").result())[0]


def refuse(**options: str) -> str:
    try:
        load_and_score(**options)
    except NotFoundError as error:
        return str(error)
    return ""


hidden = refuse()
with_key = load_and_score(weights_access_token=os.environ["TINKER_API_KEY"])
rest.publish_checkpoint_from_tinker_path(saved).result()
public = load_and_score()
seen = stranger.create_rest_client().get_training_run_by_tinker_path(saved, "accessible").result()
rest.unpublish_checkpoint_from_tinker_path(saved).result()
hidden_again = refuse()

prompt = types.ModelInput.from_ints([*datum.model_input.to_ints(), 7])
snapshot = model.save_weights_and_get_sampling_client().result()
early = model.save_weights_and_get_sampling_client(kind="inflight").result()
before = early.compute_logprobs(prompt).result()
step(model, datum)
late = model.save_weights_and_get_sampling_client(kind="inflight").result()
report(
    saved=saved,
    copied=copied,
    copied_by_project=copied_by_project,
    scored=scored,
    with_key=with_key,
    public=public,
    hidden=hidden,
    hidden_again=hidden_again,
    base_model=seen.base_model,
    before=before[1:],
    snapshot=snapshot.compute_logprobs(prompt).result()[1:],
    early=early.compute_logprobs(prompt).result()[1:],
    late=late.compute_logprobs(prompt).result()[1:],
)
