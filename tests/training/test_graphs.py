"""The graph of a custom loss: what is read, and everything else is refused by its name."""

from typing import Any

import pytest
import torch

from tests.training.tracing import (
    LOGPROBS,
    WEIGHTS,
    call,
    call_method,
    make_graph,
    read_graph,
    trace,
    write_inputs,
)
from training.errors import InvalidInput
from training.graphs import (
    MAX_ARGUMENTS,
    MAX_NODES,
    DType,
    LossInput,
    Many,
    Node,
    Ref,
    Span,
    read_custom_loss,
)

MANY_METRICS = {f"custom/{index}:sum": {"ref": "x"} for index in range(65)}
INPUTS = write_inputs(logprobs=1, weights=1)


def refuse(*calls: dict[str, Any], loss: str = "x") -> str:
    with pytest.raises(InvalidInput) as caught:
        read_graph(*calls, loss=loss)
    return str(caught.value)


def refuse_graph(graph: Any, inputs: Any = INPUTS, name: str = "sent") -> str:
    with pytest.raises(InvalidInput) as caught:
        read_custom_loss(name=name, inputs=inputs, graph=graph)
    return str(caught.value)


def test_a_traced_function_is_read_node_by_node() -> None:
    def loss(logprobs: torch.Tensor, weights: torch.Tensor) -> Any:
        total = -(logprobs[..., 1:] * weights.to(torch.float64)[1:]).sum(dim=(0,))
        return total, {"custom/total:sum": total}

    read = trace(loss, logprobs=1, weights=1)
    assert read.inputs == [LossInput(name="logprobs", rank=1), LossInput(name="weights", rank=1)]
    assert read.parameters == ["logprobs", "weights"]
    assert read.nodes[0] == Node(
        op="call_function",
        name="getitem",
        target="operator.getitem",
        args=(Ref("logprobs"), Many((..., Span(1, None, None)), True)),
        kwargs={},
    )
    assert read.nodes[1].args == (Ref("weights"), DType("float64"))
    assert read.nodes[-2].kwargs == {"dim": Many((0,), True)}
    assert read.loss == "neg"
    assert read.metrics == {"custom/total:sum": "neg"}


def test_a_name_may_shadow_anything_because_names_only_name_nodes() -> None:
    shadowing = {**call("torch.exp", LOGPROBS), "name": "__import__"}
    read = read_graph(shadowing, loss="__import__")
    assert read.nodes[0].name == "__import__"


@pytest.mark.parametrize(
    "target",
    [
        "torch.load",
        "torch.hub.load",
        "torch.save",
        "torch.jit.load",
        "torch.compile",
        "torch.set_num_threads",
        "torch.from_file",
        "torch.tensor",
        "torch.autograd.grad",
        "torch.utils.cpp_extension.load",
        "torch.ops.aten.add",
        "torch.Tensor.backward",
        "torch._C._nn.gelu.__call__",
        "torch.nn.Linear",
        "operator.attrgetter",
        "operator.methodcaller",
        "operator.itemgetter",
        "operator.setitem",
        "operator.iadd",
        "operator.call",
        "operator.lshift",
        "operator.concat",
        "operator.not_",
        "math.factorial",
        "math.comb",
        "math.perm",
        "builtins.eval",
        "eval",
        "exec",
        "open",
        "__import__",
        "os.system",
        "subprocess.run",
        "torch.os.system",
        "math.__loader__.load_module",
        "torch.ехр",  # noqa: RUF001 - Cyrillic letters
        "ｔorch.exp",  # noqa: RUF001 - a wide letter
        "torch.exp\u200b",
        "torch.\u202eexp",
        "torch..exp",
        " torch.exp",
        "",
    ],
)
def test_a_function_outside_the_list_is_refused_by_its_name(target: str) -> None:
    said = refuse(call(target, LOGPROBS))
    assert said.startswith("node x: ")
    assert f"{target!r} is not allowed in a custom loss" in said


@pytest.mark.parametrize(
    "method",
    [
        *("__class__", "__reduce_ex__", "__setstate__", "__array__", "__getattribute__", "mro"),
        *("numpy", "tolist", "item", "type", "data_ptr", "storage", "untyped_storage"),
        *("register_hook", "register_post_accumulate_grad_hook", "backward", "retain_grad"),
        *("set_", "resize_", "share_memory_", "apply_", "map_", "pin_memory", "requires_grad_"),
        *("add_", "copy_", "fill_", "zero_", "clamp_", "exp_", "mul_", "index_put_", "scatter_"),
        *("normal_", "uniform_", "random_", "bernoulli_", "as_strided", "to_sparse"),
        *("new_empty", "new_tensor", "masked_fill_", "__init_subclass__", ""),
    ],
)
def test_a_method_outside_the_list_is_refused_by_its_name(method: str) -> None:
    said = refuse(call_method(method, LOGPROBS))
    assert f"{method!r} is not allowed in a custom loss" in said


@pytest.mark.parametrize(
    ("target", "op", "why"),
    [
        ("add_", "call_method", "it changes a tensor in place; use add"),
        ("item", "call_method", "it leaves torch"),
        ("backward", "call_method", "its gradient is taken here"),
        ("torch.rand_like", "call_function", "it draws random numbers"),
        ("torch.nn.functional.dropout", "call_function", "it draws random numbers"),
        ("torch.empty_like", "call_function", "memory that nothing was written to"),
    ],
)
def test_a_refusal_says_why_where_there_is_more_to_say(target: str, op: str, why: str) -> None:
    assert why in refuse({**call(target, LOGPROBS), "op": op})


@pytest.mark.parametrize(
    "attribute",
    ["__class__", "__globals__", "grad_fn", "data", "grad", "_base", "mH", "is_cuda", "", 5, None],
)
def test_an_attribute_outside_the_list_is_refused(attribute: Any) -> None:
    assert "is not allowed in a custom loss" in refuse(call("getattr", LOGPROBS, attribute))


def test_getattr_takes_no_default_and_no_module() -> None:
    assert "reads one attribute" in refuse(call("getattr", LOGPROBS, "shape", 1))
    assert "reads one attribute" in refuse(call("getattr", "torch", "shape"))
    assert "reads one attribute" in refuse(call("getattr", LOGPROBS, input="shape"))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"out": LOGPROBS},
        {"generator": 1},
        {"requires_grad": True},
        {"inplace": True},
        {"size_average": True},
        {"sorter": LOGPROBS},
        {"__class__": 1},
        {"output_size": 10**9},
    ],
)
def test_a_keyword_outside_the_list_is_refused(kwargs: dict[str, Any]) -> None:
    assert "is not allowed in a custom loss" in refuse(call("torch.exp", LOGPROBS, **kwargs))


def test_what_the_tracer_writes_out_without_being_asked_is_left_away() -> None:
    written = {"inplace": False, "out": None, "size_average": None, "_stacklevel": 3}
    assert read_graph(call("torch.nn.functional.relu", LOGPROBS, **written)).nodes[0].kwargs == {}
    device = {"device": {"device": "cuda:7"}, "layout": {"layout": "strided"}, "dtype": None}
    assert read_graph(call("torch.ones_like", LOGPROBS, **device)).nodes[0].kwargs == {
        "dtype": None
    }


def test_an_activation_is_never_in_place() -> None:
    said = refuse(call("torch.nn.functional.relu", LOGPROBS, True))
    assert "takes its options by name, and never in place" in said


@pytest.mark.parametrize("target", ["operator.mod", "operator.mul", "operator.add", "math.exp"])
def test_operators_do_not_work_on_texts(target: str) -> None:
    assert "numbers alone" in refuse(call(target, "%1000000000d", 5))


@pytest.mark.parametrize(
    "argument",
    [
        {"ref": "later"},
        {"ref": "x"},
        {"ref": ["logprobs"]},
        {"ref": "logprobs", "tuple": []},
        {},
        {"dict": {"a": 1}},
        {"slice": [1, 2]},
        {"ellipsis": False},
        {"float": "1e5"},
        {"float": 1.5},
        {"dtype": "complex64"},
        {"dtype": "__class__"},
        {"layout": "sparse_coo"},
        {"memory_format": "channels_last"},
        {"module": "os"},
        {"tuple": {"ref": "logprobs"}},
        float("nan"),
        float("inf"),
        10**30,
        "a" * 1000,
    ],
)
def test_an_argument_that_is_not_of_the_wire_is_refused(argument: Any) -> None:
    assert refuse(call("torch.sum", argument)).startswith("node x: ")


def test_only_what_came_before_can_be_referred_to() -> None:
    first = {**call("torch.exp", {"ref": "b"}), "name": "a"}
    second = {**call("torch.exp", LOGPROBS), "name": "b"}
    assert "'b', which no node before it is named" in refuse(first, second)


def test_a_name_is_used_once() -> None:
    assert "node x: the name is used twice" in refuse(
        call("torch.exp", LOGPROBS), call("torch.exp", LOGPROBS)
    )
    twice = {**call("torch.exp", LOGPROBS), "name": "weights"}
    assert "node weights: the name is used twice" in refuse(twice)


@pytest.mark.parametrize("op", ["get_attr", "call_module", "root", "", None, 7, ["call_function"]])
def test_another_op_is_refused(op: Any) -> None:
    assert refuse({**call("torch.exp", LOGPROBS), "op": op}).startswith("node x: ")


def test_a_method_is_called_on_a_value_of_the_graph() -> None:
    assert "not called on a value" in refuse(call_method("exp"))
    assert "not called on a value" in refuse(call_method("exp", 3))


def test_a_graph_is_bounded() -> None:
    many = [{**call("torch.exp", LOGPROBS), "name": f"n{i}"} for i in range(10_000)]
    assert f"from 1 to {MAX_NODES}" in refuse(*many, loss="n1")
    wide = call("torch.cat", [LOGPROBS] * (MAX_ARGUMENTS + 1))
    assert f"more than {MAX_ARGUMENTS} arguments" in refuse(wide)
    deep: Any = LOGPROBS
    for _ in range(900):
        deep = [deep]
    assert "nested deeper" in refuse(call("torch.cat", deep))
    for _ in range(900):
        deep = {"tuple": [deep]}
    assert "nested deeper" in refuse(call("torch.cat", deep))


@pytest.mark.parametrize(
    "graph",
    [
        None,
        [],
        {},
        {"format": 2, "nodes": []},
        {"format": 1, "nodes": []},
        {"format": 1, "nodes": {}},
        {"format": 1, "nodes": [1]},
        {"format": 1, "nodes": [{}]},
        {"format": 1, "nodes": [{"op": "output", "name": "o", "target": "output", "more": 1}]},
        {"format": 1, "nodes": [], "code": "import os"},
    ],
)
def test_what_is_no_graph_is_refused(graph: Any) -> None:
    assert refuse_graph(graph)


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        (None, "no list of 1 to 16"),
        ([], "no list of 1 to 16"),
        (write_inputs(logprobs=1, **{f"w{i}": 1 for i in range(16)}), "no list of 1 to 16"),
        (write_inputs(weights=1, logprobs=1), "begin with logprobs"),
        (write_inputs(logprobs=0, weights=1), "logprobs has rank 1 or 2"),
        (write_inputs(logprobs=3, weights=1), "rank of logprobs is 3"),
        ([{"name": "logprobs", "rank": True}], "rank of logprobs is True"),
        ([{"name": "logprobs", "rank": 1}] * 2, "name one twice"),
        ([{"name": "logprobs", "rank": 1}, {"name": "__class__", "rank": 9}], "rank of __class__"),
        ([{"name": "Logprobs", "rank": 1}], "no lowercase name"),
        ([{"name": ["logprobs"], "rank": 1}], "no lowercase name"),
        ([{"name": "logprobs"}], "no object of a name and a rank"),
        (write_inputs(logprobs=1, advantages=1), "'weights' is not the next one"),
        (write_inputs(logprobs=1), "'weights' is not the next one"),
        (write_inputs(logprobs=1, weights=1, more=1), "2 parameters, inputs 3"),
    ],
)
def test_inputs_are_checked_against_the_parameters(inputs: Any, complaint: str) -> None:
    graph = make_graph(call("torch.sum", LOGPROBS))
    assert complaint in refuse_graph(graph, inputs)


def test_a_parameter_has_no_default_and_comes_first() -> None:
    graph = make_graph(call("torch.sum", LOGPROBS))
    graph["nodes"][1]["args"] = [3]
    assert "has no default" in refuse_graph(graph)
    graph = make_graph(call("torch.sum", LOGPROBS))
    graph["nodes"][1:3] = reversed(graph["nodes"][1:3])
    assert "is not the next one" in refuse_graph(graph)


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        ([], "returns its loss"),
        ([{"ref": "x"}], "returns its loss"),
        ([{"tuple": [{"ref": "x"}]}], "returns its loss"),
        ([{"tuple": [{"ref": "x"}, {"ref": "x"}]}], "a dict of at most"),
        ([{"tuple": [3.0, {"dict": {}}]}], "loss is no value of the graph"),
        ([{"tuple": [{"ref": "x"}, {"dict": {"loss:sum": {"ref": "x"}}}]}], "'loss:sum' is not"),
        ([{"tuple": [{"ref": "x"}, {"dict": {"custom/a:max": {"ref": "x"}}}]}], "is not named"),
        ([{"tuple": [{"ref": "x"}, {"dict": {"custom/a:b:sum": {"ref": "x"}}}]}], "is not named"),
        ([{"tuple": [{"ref": "x"}, {"dict": {"custom/A:sum": {"ref": "x"}}}]}], "is not named"),
        ([{"tuple": [{"ref": "x"}, {"dict": {"custom/a:sum": 3}}]}], "is no value of the graph"),
        (
            [
                {
                    "tuple": [
                        {"ref": "x"},
                        {"dict": {f"custom/{i}:sum": {"ref": "x"} for i in range(65)}},
                    ]
                }
            ],
            "at most 64 metrics",
        ),
    ],
)
def test_what_is_returned_is_a_loss_and_its_metrics(returned: list[Any], complaint: str) -> None:
    graph = make_graph(call("torch.sum", LOGPROBS))
    graph["nodes"][-1]["args"] = returned
    assert complaint in refuse_graph(graph)


def test_a_graph_ends_with_its_output() -> None:
    graph = make_graph(call("torch.sum", WEIGHTS))
    graph["nodes"].pop()
    assert "ends with its output" in refuse_graph(graph)
    graph = make_graph(call("torch.sum", WEIGHTS))
    graph["nodes"].insert(2, {**graph["nodes"][-1], "args": []})
    assert "output is not allowed" in refuse_graph(graph)


def test_a_loss_has_a_name() -> None:
    graph = make_graph(call("torch.sum", LOGPROBS))
    assert "name has 0 characters" in refuse_graph(graph, name="")
    assert "name has 5000 characters" in refuse_graph(graph, name="a" * 5000)
