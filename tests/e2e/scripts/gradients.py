"""Forward-only passes leave gradients alone; chunks come in any order; compression is invisible."""

from program import ADAM, connect, make_datum, open_model, read_logprobs, report

NUM_DATUMS = 2100  # three requests of one call: the first is sent last

service = connect()
compressing = connect(default_headers_overrides={"X-Forwarded-For": "10.0.0.9"})
data = [make_datum(seed, 2 + seed % 3) for seed in range(NUM_DATUMS)]
one, other = make_datum(1), make_datum(2)

plain = open_model(service)
plain.forward_backward([one], "cross_entropy").result()
alone = plain.optim_step(ADAM).result().metrics["grad_norm"]

mixed = open_model(service)
mixed.forward_backward([one], "cross_entropy").result()
looked = mixed.forward([other], "cross_entropy").result()
with_forward = mixed.optim_step(ADAM).result().metrics["grad_norm"]

whole = plain.forward(data, "cross_entropy").result()
packed = open_model(compressing)
packed.forward_backward([one], "cross_entropy").result()
packed.optim_step(ADAM).result()
compressed = packed.forward(data, "cross_entropy").result()
few = plain.forward(data[1500:1503], "cross_entropy").result()

report(
    alone=alone,
    with_forward=with_forward,
    forward_loss=looked.metrics["loss:sum"],
    num_outputs=len(whole.loss_fn_outputs),
    lengths_match=all(
        len(logprobs) == datum.model_input.length
        for logprobs, datum in zip(read_logprobs(whole), data, strict=True)
    ),
    whole=read_logprobs(whole)[1500:1503],
    compressed=read_logprobs(compressed)[1500:1503],
    few=read_logprobs(few),
    loss=whole.metrics["loss:sum"],
    sum_of_logprobs=-sum(sum(logprobs) for logprobs in read_logprobs(whole)),
)
