"""What a program reads about itself and its project, by a token that the SDK gets for its key."""

import urllib.request
from datetime import UTC, datetime, timedelta

import tinker
from program import MODEL, connect, make_datum, open_model, report, step, types

rest = tinker.RestClient()
who = rest.whoami().result()

service = connect(user_metadata={"recipe": "account"})
model = open_model(service)
loss = step(model, make_datum(1))
model.save_state("kept").result()
sampler = model.save_weights_and_get_sampling_client().result()
prompt = types.ModelInput.from_ints([5, 6, 7])
params = types.SamplingParams(max_tokens=3, stop=[])
answer = sampler.sample(prompt, sampling_params=params, num_samples=2).result()
session_id = model.model_id.split(":")[0]
service.close("success").result()

listed = rest.list_sessions(limit=5).result().sessions
found = rest.get_session(session_id).result()
wanted = types.SessionSearchRequest(
    user_metadata={"recipe": "account"},
    statuses=[types.ClientFinishedSessionStatusQuery(reasons=["success"])],
    limit=1,
)
page = rest.search_sessions(wanted).result()
summary = page.sessions[0]

with urllib.request.urlopen(rest.export_session_trace(session_id).result()) as response:
    trace = response.read().decode()

admin = tinker.AdminClient()
hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
usage = admin.get_billing_usage(hour - timedelta(hours=1), hour + timedelta(hours=2)).result()
mine = [event for event in usage.data if event.session_id == session_id]
storage = admin.get_current_checkpoint_storage_usage().result()
audit = admin.get_audit_log("all", day=datetime.now(UTC).date()).result()

report(
    user=who.user_urn,
    organization=who.org_urn,
    email=who.email,
    loss=loss,
    num_sequences=len(answer.sequences),
    session=session_id,
    is_listed=session_id in listed,
    runs=found.training_run_ids == [model.model_id],
    num_samplers=len(found.sampler_ids),
    metadata=found.user_metadata,
    found=summary.session_id,
    status=summary.status.type,
    num_checkpoints=summary.checkpoints_count,
    trace=trace,
    usage={event.event_info.type: event.event_info.model_dump() for event in mine},
    sessions=usage.sessions[session_id].user_metadata,
    model=mine[0].base_model == MODEL,
    num_stored=storage.data[0].checkpoint_count,
    events=[entry.event for entry in audit.entries],
)
