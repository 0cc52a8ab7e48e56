"""Custom losses run as their own Python would, and what asks for too much is refused in time."""

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from tests.training.tracing import LOGPROBS, WEIGHTS, call, call_method, read_graph, trace
from training.engine import traced
from training.engine.traced import Judged, Meter, judge
from training.errors import InvalidInput
from training.graphs import CustomLoss
from training.types import Datum

LENGTH = 12
Formula = Callable[[Tensor, Tensor], Any]


def make_datum(length: int = LENGTH, **inputs: Any) -> Datum:
    random = np.random.default_rng(length)
    weights = random.normal(size=length).astype(np.float32)
    tokens = random.integers(0, 90, length)
    return Datum(tokens=tokens, inputs={"target_tokens": tokens, "weights": weights, **inputs})


def make_logprobs(length: int = LENGTH) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(7).uniform(-4, -0.1, length).astype(np.float32)


def run(loss: CustomLoss, datum: Datum | None = None, *, with_slopes: bool = True) -> Judged:
    datum = datum or make_datum()
    logprobs = make_logprobs(len(datum.tokens))
    return judge(loss, datum, logprobs, Meter(), with_slopes=with_slopes)


def refuse(*calls: dict[str, Any]) -> str:
    loss = read_graph(*calls)
    with pytest.raises(InvalidInput) as caught:
        run(loss)
    return str(caught.value)


def chain(*calls: dict[str, Any]) -> list[dict[str, Any]]:
    """Each has a name of its own: n0, n1 ...; the last one is x."""
    named = [{**each, "name": f"n{index}"} for index, each in enumerate(calls[:-1])]
    return [*named, calls[-1]]


FORMULAS: dict[str, Formula] = {
    "policy gradient": lambda lp, w: -(lp * w).sum(),
    "mask": lambda lp, w: -lp[w > 0].sum(),
    "masked select": lambda lp, w: torch.masked_select(lp, w > 0).mean(),
    "where": lambda lp, w: torch.where((w > 0) & ~(w > 1), lp, 0.0).sum(),
    "augmented": lambda lp, w: (lp.exp() ** 2).sum() / max_of(w),
    "differences": lambda lp, w: (lp[1:] - lp[:-1]).square().mean() + lp[::2].sum() + lp[-1],
    "pairs": lambda lp, w: F.relu(lp[:, None] - lp[None, :] + w[..., None]).sum() / lp.numel(),
    "shape": lambda lp, w: lp.sum() / lp.shape[0] + lp.size(0) + lp.dim() * lp.mean(),
    "tuples": lambda lp, w: lp.expand(lp.shape + (2,)[:0]).sum() * lp.shape.numel(),
    "new": lambda lp, w: (lp * w.new_full(lp.shape, 2.0) + torch.zeros_like(lp)).sum(),
    "arange": lambda lp, w: (lp * torch.arange(lp.shape[0], device=lp.device)).sum(),
    "math": lambda lp, w: lp.sum() * math.sqrt(lp.shape[0]) * math.exp(w.sum() * 0.01),
    "types": lambda lp, w: (lp.double() * w.to(torch.float64)).sum().float() + lp.to(w).sum(),
    "devices": lambda lp, w: lp.to("cuda").cuda().cpu().to(lp.device).sum() * 1.0,
    "named pair": lambda lp, w: lp.max(dim=0).values + torch.sort(lp).indices.sum() + lp[0],
    "top": lambda lp, w: lp.topk(3)[0].sum() + torch.kthvalue(lp, 2)[0],
    "logsumexp": lambda lp, w: torch.logsumexp(lp, dim=0) - math.log(3) + lp.logsumexp(-1),
    "softmax": lambda lp, w: (F.log_softmax(lp, dim=-1) * torch.softmax(w, -1)).sum(),
    "cumulative": lambda lp, w: (lp.cumsum(0) * w).sum() + torch.cumsum(lp, dim=0)[-1],
    "clamp": lambda lp, w: torch.minimum(lp.exp() * w, lp.exp().clamp(0.2, max=0.5) * w).sum(),
    "bounds": lambda lp, w: torch.clamp(lp, min=-1.0, max=math.inf).sum() + torch.clip(lp, w).sum(),
    "activations": lambda lp, w: (
        F.softplus(lp) + F.logsigmoid(lp) + F.silu(lp) + F.gelu(lp) + F.leaky_relu(lp, 0.2)
    ).sum(),
    "special": lambda lp, w: (
        torch.special.expit(lp).sum() + torch.special.xlogy(w.abs(), -lp).sum()
    ),
    "losses": lambda lp, w: (
        F.mse_loss(lp, w)
        + F.huber_loss(lp, w, delta=0.5)
        + F.smooth_l1_loss(lp, w)
        + F.binary_cross_entropy_with_logits(lp, w.sigmoid())
        + F.l1_loss(lp, w, reduction="sum")
    ),
    "divergence": lambda lp, w: F.kl_div(lp, w.softmax(0), reduction="sum"),
    "classes": lambda lp, w: F.cross_entropy(lp[None], w.argmax()[None]),
    "norms": lambda lp, w: lp.norm() + torch.norm(lp) + torch.linalg.norm(lp) + lp.norm(p=1),
    "vector norm": lambda lp, w: torch.linalg.vector_norm(lp[None] * w, ord=3, dim=-1).sum(),
    "products": lambda lp, w: lp @ w + torch.dot(lp, w) + torch.einsum("i,i->", lp, w),
    "outer": lambda lp, w: torch.outer(lp, w).tril().sum() + torch.einsum("i,j->ij", lp, w).mean(),
    "matrices": lambda lp, w: ((lp[:, None] @ w[None]).T @ lp[:, None]).mT.sum(),
    "shapes": lambda lp, w: (
        lp.reshape(3, 4).transpose(0, 1).flatten(0).unsqueeze(0).repeat(2, 1).view(-1, 2).sum()
        + torch.stack([lp, w]).permute(1, 0).squeeze().mean()
        + lp.flip(0)[0]
    ),
    "joined": lambda lp, w: torch.cat((lp, w), dim=0).prod() + torch.hstack([lp, lp]).sum(),
    "pieces": lambda lp, w: (
        torch.split(lp, 5)[2].sum() + lp.chunk(3)[0].mean() + lp.reshape(2, 6).unbind(1)[0].sum()
    ),
    "gather": lambda lp, w: lp.gather(0, w.argsort()).cumsum(0).sum() + lp[[0, 2]].sum(),
    "select": lambda lp, w: (
        torch.index_select(lp, 0, w.argsort()[:3]).sum()
        + lp.narrow(0, 1, 4).sum()
        + lp.take(w.argmax())
    ),
    "scatter": lambda lp, w: torch.zeros_like(w).scatter_add(0, (w > 0).long(), lp).square().sum(),
    "one hot": lambda lp, w: (F.one_hot((w > 0).long(), 2) * lp[:, None]).sum(0)[1],
    "padding": lambda lp, w: (F.pad(lp, (1, 2), value=-1.0)[1:-2] * w).sum(),
    "masked fill": lambda lp, w: (
        lp.masked_fill(w < 0, 0.0).sum() + lp.masked_fill(w > 9, -1).mean()
    ),
    "statistics": lambda lp, w: (
        lp.std() + lp.var(unbiased=False) + torch.std_mean(lp)[1] + lp.median()
    ),
    "quantile": lambda lp, w: torch.quantile(lp, 0.25) * 3,
    "normalised": lambda lp, w: (lp * (w - w.mean()) / (w.std() + 1e-8)).sum(),
    "detached": lambda lp, w: -((lp - lp.detach()).exp() * w).sum() - lp.clone().sum() * 0,
    "integers": lambda lp, w: lp.sum() * (lp.shape[0] // 5 + lp.shape[0] % 5 + 2**lp.ndim),
    "comparisons": lambda lp, w: (lp * (w >= 0) * (w != 0.5) * w.isfinite()).sum(),
    "meshgrid": lambda lp, w: torch.meshgrid(lp, w, indexing="ij")[0].mean(),
    "interleaved": lambda lp, w: lp.repeat_interleave(2).sum() + lp.tile(2).mean(),
    "differenced": lambda lp, w: torch.diff(lp).abs().sum() + lp.real.sum(),
    "cosine": lambda lp, w: torch.cosine_similarity(lp, w, dim=0) + F.normalize(lp, dim=0).sum(),
    "not numbers": lambda lp, w: torch.nan_to_num(lp / lp, nan=0.0, posinf=1.0).sum() + lp.sum(),
}


def max_of(values: Tensor) -> Tensor:
    return values.abs().max()


@pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS)
def test_a_loss_is_what_its_python_gives_with_the_same_slopes(
    formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(logprobs: Tensor, weights: Tensor) -> Any:
        total = formula(logprobs, weights)
        return total, {"custom/total:sum": total, "custom/mean:mean": logprobs.mean()}

    judged = run(trace(loss, logprobs=1, weights=1))
    own = torch.from_numpy(make_logprobs()).requires_grad_()
    monkeypatch.setattr(Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(Tensor, "to", leave_device(Tensor.to))
    expected, metrics = loss(own, torch.from_numpy(make_datum().inputs["weights"]))
    expected.backward()
    assert own.grad is not None
    assert judged.loss == expected.item()
    assert judged.metrics == {key: value.item() for key, value in metrics.items()}
    np.testing.assert_array_equal(judged.slopes, own.grad.numpy())


def leave_device(to: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What a machine with a GPU would do, on one that has none."""
    return lambda tensor, where: tensor if where == "cuda" else to(tensor, where)


def test_what_is_only_looked_at_needs_no_gradient() -> None:
    def loss(logprobs: Tensor, weights: Tensor) -> Any:
        return weights.sum(), {}

    read = trace(loss, logprobs=1, weights=1)
    judged = run(read, with_slopes=False)
    assert judged.loss == pytest.approx(float(make_datum().inputs["weights"].sum()))
    assert not judged.slopes.any()
    with pytest.raises(InvalidInput, match="does not depend on logprobs"):
        run(read)


def test_inputs_have_the_dimensions_that_were_declared() -> None:
    def loss(logprobs: Tensor, scale: Tensor, table: Tensor, one: Tensor) -> Any:
        return (logprobs * scale).sum() + table.sum() * logprobs[0], {
            "custom/ranks:sum": torch.stack([one.sum() * 0 + scale.ndim * 10 + table.ndim])
        }

    read = trace(loss, logprobs=1, scale=0, table=2, one=1)
    datum = make_datum(
        scale=np.array([3.0], np.float32),
        table=np.ones((2, 3), np.int64),
        one=np.array([1.0], np.float32),
    )
    assert run(read, datum).metrics == {"custom/ranks:sum": 2.0}


def test_two_dimensions_of_logprobs_have_two_dimensions_of_slopes() -> None:
    def loss(logprobs: Tensor, weights: Tensor) -> Any:
        return -(logprobs.exp() * weights).sum(), {}

    logprobs = make_logprobs(12).reshape(4, 3)
    weights = np.arange(12, dtype=np.float32).reshape(4, 3)
    read = trace(loss, logprobs=2, weights=2)
    judged = judge(read, make_datum(4, weights=weights), logprobs, Meter(), with_slopes=True)
    np.testing.assert_allclose(judged.slopes, -np.exp(logprobs) * weights, rtol=1e-6)


def test_a_loss_cannot_change_what_the_datum_brings() -> None:
    datum = make_datum()
    before = datum.inputs["weights"].copy()

    def loss(logprobs: Tensor, weights: Tensor) -> Any:
        return (logprobs * weights.detach().contiguous().view(-1)).sum(), {}

    run(trace(loss, logprobs=1, weights=1), datum)
    np.testing.assert_array_equal(datum.inputs["weights"], before)


@pytest.mark.parametrize(
    ("calls", "complaint"),
    [
        ([call("operator.getitem", LOGPROBS, 99)], "node x (operator.getitem): index 99"),
        ([call("torch.gather", LOGPROBS, 0, WEIGHTS)], "node x (torch.gather): "),
        ([call("operator.matmul", LOGPROBS, 3)], "a product takes two tensors"),
        ([call_method("exp", LOGPROBS), call_method("exp", {"ref": "x"})], None),
        ([call("torch.sum", 3)], "node x (torch.sum): "),
        ([call("torch.exp", LOGPROBS, dim=0)], "node x (torch.exp): "),
        ([call("operator.truediv", 1, 0)], "division by zero"),
        ([call("math.sqrt", -1)], "node x (math.sqrt): "),
        ([call("math.exp", LOGPROBS)], "math works on single numbers"),
        ([call("math.exp", 10**6)], "node x (math.exp): "),
        ([call("getattr", LOGPROBS, "values")], "a Tensor has no attribute values"),
        ([call("operator.pow", -8, 0.5)], "a complex is not allowed"),
        ([call("operator.mul", {"tuple": [1]}, 10**9)], "tensors and numbers only"),
        ([call("operator.mul", [1], 10**9)], "tensors and numbers only"),
        ([call("operator.pow", 10, 10**12)], "the power of two whole numbers"),
        ([call("operator.pow", 2**62, 2)], "the power of two whole numbers"),
        ([call("operator.mul", 2**62, 2**62)], "a whole number is out of range"),
        ([call("math.prod", [2**62] * 4000)], "a whole number is out of range"),
        ([call("torch.functional.einsum", "...i->i", LOGPROBS)], "more than letters"),
        ([call("torch.functional.einsum", "i,j->", LOGPROBS)], "does not fit the dimensions"),
        ([call_method("type_as", LOGPROBS, LOGPROBS)], "the loss is (12,)"),
        ([call_method("size", LOGPROBS)], "the loss is Size"),
        (
            [
                call("operator.truediv", LOGPROBS, 0),
            ],
            "the loss is (12,)",
        ),
        ([call_method("view", LOGPROBS, {"dtype": "int8"})], "a size is no whole number"),
        ([call("torch.arange", 0, {"float": "inf"})], "no finite number"),
        ([call("torch.arange", 0, {"float": "nan"})], "no finite number"),
        ([call("torch.arange", 0, 1, 0)], "its step is 0"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_its_node(
    calls: list[dict[str, Any]], complaint: str | None
) -> None:
    if complaint is None:
        with pytest.raises(InvalidInput, match="the name is used twice"):
            read_graph(*calls)
        return
    assert complaint in refuse(*calls)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    infinite = chain(call("operator.truediv", LOGPROBS, 0), call_method("sum", {"ref": "n0"}))
    assert "the loss is -inf, not a finite number" in refuse(*infinite)
    steep = chain(
        call("operator.sub", LOGPROBS, LOGPROBS),
        call("torch.sqrt", {"ref": "n0"}),
        call_method("sum", {"ref": "n1"}),
    )
    assert "the gradient of the loss by logprobs is not finite" in refuse(*steep)


BIG = 10**9
BOMBS: dict[str, dict[str, Any]] = {
    "zeros": call("torch.zeros", BIG),
    "zeros by shape": call("torch.zeros", {"tuple": [BIG, BIG, BIG]}),
    "full": call("torch.full", [BIG], 1.0),
    "ones like": call("torch.ones", size=[BIG]),
    "new zeros": call_method("new_zeros", LOGPROBS, {"tuple": [BIG]}),
    "new full": call_method("new_full", LOGPROBS, {"tuple": [BIG]}, 1),
    "arange": call("torch.arange", BIG),
    "arange by a small step": call("torch.arange", 0, 1, 1e-12),
    "linspace": call("torch.linspace", 0, 1, BIG),
    "eye": call("torch.eye", BIG),
    "expand": call_method("expand", LOGPROBS, BIG, -1),
    "expand by a tuple": call_method("expand", LOGPROBS, {"tuple": [BIG, -1]}),
    "broadcast": call("torch.broadcast_to", LOGPROBS, {"tuple": [BIG, 12]}),
    "repeat": call_method("repeat", LOGPROBS, BIG),
    "tile": call("torch.tile", LOGPROBS, {"tuple": [BIG]}),
    "interleave": call("torch.repeat_interleave", LOGPROBS, BIG),
    "one hot": call("torch._C._nn.one_hot", {"ref": "n0"}, BIG),
    "pad": call("torch.nn.functional.pad", LOGPROBS, {"tuple": [0, BIG]}),
    "diagonal": call("torch.diag", LOGPROBS, BIG),
    "einsum": call("torch.functional.einsum", "a,b,c,d,e,f,g,h->", *[LOGPROBS] * 8),
    "einsum kept": call("torch.functional.einsum", "a,b,c,d,e,f,g->abcdefg", *[LOGPROBS] * 7),
    "meshgrid": call("torch.functional.meshgrid", *[LOGPROBS] * 8),
    "numbers that are tensors": call("math.prod", [{"ref": "n1"}] * 3),
    "cat": call("torch.cat", [{"ref": "n1"}] * 1000),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_result_that_is_too_large_is_refused_before_it_is_made(bomb: dict[str, Any]) -> None:
    prepared = [call_method("long", LOGPROBS), call("torch.zeros", 2**20), bomb]
    tracemalloc.start()
    said = refuse(*chain(*prepared))
    assert "its result would have" in said or "works on single numbers" in said
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


HOLLOW: dict[str, dict[str, Any]] = {
    "zeros": call("torch.zeros", BIG, 0),
    "reshape": call_method("reshape", {"ref": "n2"}, BIG, 0),
    "expand": call_method("expand", {"ref": "n2"}, BIG, 0),
    "repeat": call_method("repeat", {"ref": "n2"}, BIG, 1),
    "index": call("operator.getitem", {"ref": "n2"}, {"tuple": [{"ref": "n1"}, {"ref": "n1"}]}),
    "sum": call("operator.add", {"ref": "n3"}, {"ref": "n4"}),
    "product": call("torch.matmul", {"ref": "n3"}, {"ref": "n5"}),
    "outer": call("torch.outer", {"ref": "n1"}, {"ref": "n1"}),
}


@pytest.mark.parametrize("bomb", HOLLOW.values(), ids=HOLLOW)
def test_dimensions_beside_an_empty_one_count_too(bomb: dict[str, Any]) -> None:
    """A sum over the empty one would leave all the others."""
    prepared = [
        call_method("long", LOGPROBS),
        call("torch.zeros", 2**20, dtype={"dtype": "int64"}),
        call("torch.zeros", 1, 0),
        call("torch.zeros", 2**12, 1, 0),
        call("torch.zeros", 1, 2**12, 0),
        call("torch.zeros", 2**11, 0, 2**11),
        bomb,
        call_method("sum", {"ref": "n6"}, -1),
    ]
    assert "node n6 " in refuse(*chain(*prepared))


def test_many_middling_results_are_too_much_together() -> None:
    calls = [call("torch.zeros", 2**21) for _ in range(40)]
    assert "makes more than" in refuse(*chain(*calls))


def test_many_pieces_are_refused() -> None:
    calls = chain(call("torch.zeros", 2**20), call("torch.unbind", {"ref": "n0"}))
    assert "it makes 1048576 pieces" in refuse(*calls)


def test_a_product_of_large_matrices_counts_as_the_work_it_is() -> None:
    calls = chain(
        call("torch.ones", 2000, 2000),
        *[call("torch.matmul", {"ref": "n0"}, {"ref": "n0"}) for _ in range(3)],
    )
    assert "compute too much" in refuse(*calls)


def test_the_losses_of_a_request_share_one_allowance() -> None:
    def loss(logprobs: Tensor, weights: Tensor) -> Any:
        return logprobs.exp().sum(), {}

    read, meter = trace(loss, logprobs=1, weights=1), Meter(work=traced.REQUEST_WORK - 5000)
    judge(read, make_datum(), make_logprobs(), meter, with_slopes=True)
    with pytest.raises(InvalidInput, match="send fewer datums"):
        judge(read, make_datum(), make_logprobs(), meter, with_slopes=True)


@pytest.mark.parametrize(
    "trap",
    [
        call("torch.div", {"ref": "n1"}, -1, rounding_mode="trunc"),
        call("torch.floor_divide", {"ref": "n1"}, -1),
        call("operator.floordiv", {"ref": "n1"}, -1),
        call("operator.mod", {"ref": "n1"}, -1),
        call("torch.remainder", {"ref": "n1"}, -1),
        call_method("fmod", {"ref": "n1"}, -1),
    ],
    ids=lambda trap: trap["target"],
)
@pytest.mark.parametrize("dtype", ["int64", "int32", "int16", "int8"])
def test_the_division_that_the_processor_cannot_do_is_refused(
    trap: dict[str, Any], dtype: str
) -> None:
    smallest = torch.iinfo(getattr(torch, dtype)).min
    calls = chain(
        call("torch.full", [3], smallest + 1, dtype={"dtype": dtype}),
        call("operator.sub", {"ref": "n0"}, 1),
        trap,
    )
    assert "divides the smallest integer" in refuse(*calls)
