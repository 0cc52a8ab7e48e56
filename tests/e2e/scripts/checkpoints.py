"""Weights are saved, loaded with and without the optimizer, listed, and deleted."""

from program import connect, make_datum, open_model, report, step

service = connect()
model = open_model(service)
data = [make_datum(1), make_datum(2)]
for _ in range(3):
    step(model, *data)
saved = model.save_state("third", ttl_seconds=7200, user_metadata={"a": "b"}).result()
sampler = model.save_weights_for_sampler("third").result()
went_on = [step(model, *data) for _ in range(3)]

resumed = service.create_training_client_from_state_with_optimizer(saved.path).result()
with_optimizer = [step(resumed, *data) for _ in range(3)]
fresh = service.create_training_client_from_state(saved.path).result()
without_optimizer = [step(fresh, *data) for _ in range(3)]
changed = open_model(service)
changed.load_state_with_optimizer(saved.path).result()
loaded = [step(changed, *data) for _ in range(3)]

rest = service.create_rest_client()
run = rest.get_training_run_by_tinker_path(saved.path).result()
listed = rest.list_checkpoints(run.training_run_id).result().checkpoints
info = rest.get_weights_info_by_tinker_path(saved.path).result()
rest.delete_checkpoint_from_tinker_path(sampler.path).result()
left = rest.list_checkpoints(run.training_run_id).result().checkpoints
service.close("success").result()
report(
    path=saved.path,
    sampler_path=sampler.path,
    went_on=went_on,
    with_optimizer=with_optimizer,
    without_optimizer=without_optimizer,
    loaded=loaded,
    listed=sorted(each.checkpoint_id for each in listed),
    left=[each.checkpoint_id for each in left],
    rank=info.lora_rank,
    base_model=run.base_model,
)
