"""Several targets for one position, dense and as the sparse rows that the SDK makes of a tensor."""

import numpy as np
from program import connect, make_datum, open_model, report, types

NUM_TOKENS, NUM_TARGETS = 12, 6


def make_sparse(values: np.ndarray, dtype: str) -> types.TensorData:
    """What TensorData.from_torch_sparse makes, where there is no torch to make it."""
    rows, columns = np.nonzero(values)
    starts = np.searchsorted(rows, np.arange(len(values) + 1))
    return types.TensorData(
        data=values[rows, columns],
        dtype=dtype,
        shape=list(values.shape),
        sparse_crow_indices=starts.tolist(),
        sparse_col_indices=columns.tolist(),
    )


def make_datums(seed: int) -> tuple[types.Datum, types.Datum, list[types.Datum]]:
    """The same targets and weights: dense, sparse, and one datum for each column."""
    random = np.random.default_rng(seed)
    shape = (NUM_TOKENS, NUM_TARGETS)
    on = random.random(shape) < 0.3
    targets = on * random.integers(5, 500, shape)
    weights = (on * random.uniform(-1, 2, shape)).astype(np.float32)
    text = make_datum(seed, NUM_TOKENS).model_input

    def datum(**inputs: object) -> types.Datum:
        return types.Datum(model_input=text, loss_fn_inputs=inputs)

    columns = [
        datum(target_tokens=targets[:, k], weights=weights[:, k]) for k in range(NUM_TARGETS)
    ]
    sparse = datum(
        target_tokens=make_sparse(targets, "int64"), weights=make_sparse(weights, "float32")
    )
    return datum(target_tokens=targets, weights=weights), sparse, columns


def measure(*data: types.Datum) -> dict[str, float]:
    """Loss and norm of the gradient at the untrained weights."""
    model = open_model(service)
    loss = model.forward_backward(list(data), "cross_entropy").result().metrics["loss:sum"]
    update = model.optim_step(types.AdamParams()).result()
    return {"loss": loss, "grad_norm": update.metrics["grad_norm"]}


service = connect()
dense, sparse, columns = make_datums(3)
mixed = open_model(service).forward([make_datum(1), dense, sparse, *columns], "cross_entropy")
_, of_dense, of_sparse, *of_columns = [
    each["logprobs"].to_numpy() for each in mixed.result().loss_fn_outputs
]
report(
    dense=measure(dense),
    sparse=measure(sparse),
    columns=measure(*columns),
    of_dense=of_dense.tolist(),
    of_sparse=of_sparse.tolist(),
    of_columns=np.stack(of_columns, axis=1).tolist(),
)
