"""A training loop of its user's own: prints each loss as it comes, then all of them."""

import sys

from program import connect, make_datum, open_model, report, step

num_steps = int(sys.argv[1])
service = connect()
model = open_model(service)
info = model.get_info()
tokenizer = model.get_tokenizer()
losses = []
for index in range(num_steps):
    losses.append(step(model, make_datum(index % 3), make_datum(10 + index % 3, 20)))
    print(f"step {index}", file=sys.stderr, flush=True)
service.close("success", detail="trained").result()
report(
    losses=losses,
    model_id=info.model_id,
    rank=info.lora_rank,
    tokens=tokenizer.encode("Hello, world"),
)
