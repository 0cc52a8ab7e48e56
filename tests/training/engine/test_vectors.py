"""Datums as vectors, and losses of them, against transformers, peft and torch alone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize
from transformers import PreTrainedModel

from tests.training.engine.reference import load_peft, read_peft_gradients
from tests.training.engine.rows import make_data
from tests.training.engine.test_full import load_plainly
from tests.training.engine.two_ranks import BUDGET, load
from training.engine.core import Engine
from training.engine.lead import Lead
from training.errors import InvalidInput
from training.types import AdamParams, Datum, FloatArray, ForwardBackward, ForwardBackwardOutput
from training.types import LoraSpec as Spec

Stir = Callable[[Engine, str], None]
LENGTHS = (9, 21, 4, 33, 9, 17)
CONTRAST: dict[str, float | str] = {
    "output": "contrastive_loss",
    "num_queries": 2.0,
    "temperature": 0.05,
    "num_extra_negatives": 2.0,
}
WIDTH = 48


@pytest.fixture(params=["llama", "qwen3"])
def path(request: pytest.FixtureRequest, random_paths: dict[str, Path]) -> Path:
    return random_paths[request.param]


@pytest.fixture
def data() -> list[Datum]:
    return [*make_data(*LENGTHS)]


def give(data: Sequence[Datum], gradients: Sequence[FloatArray]) -> list[Datum]:
    return [
        replace(datum, inputs={"embedding_grads": each})
        for datum, each in zip(data, gradients, strict=True)
    ]


def draw(count: int, width: int) -> list[FloatArray]:
    random = np.random.default_rng(5)
    return list(random.normal(size=(count, width)).astype(np.float32))


def ask(engine: Engine, data: Sequence[Datum], **settings: object) -> ForwardBackwardOutput:
    request = ForwardBackward(data=data, **settings)  # type: ignore[arg-type]
    output = engine.forward_backward({"run": request})["run"]
    assert isinstance(output, ForwardBackwardOutput), output
    return output


def read_refusal(engine: Engine, data: Sequence[Datum], **settings: object) -> str:
    request = ForwardBackward(data=data, **settings)  # type: ignore[arg-type]
    output = engine.forward_backward({"run": request})["run"]
    assert isinstance(output, InvalidInput)
    return str(output)


def pool_plainly(model: PreTrainedModel, data: Sequence[Datum], pooling: str) -> torch.Tensor:
    """One sequence at a time, by the hidden states that transformers tells."""
    vectors = []
    for datum in data:
        ids = torch.from_numpy(datum.tokens)[None]
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        vectors.append(hidden[-1] if pooling == "last" else hidden.mean(dim=0))
    return torch.stack(vectors)


def compute_loss(
    vectors: torch.Tensor, config: dict[str, float | str], given: torch.Tensor
) -> torch.Tensor:
    if config["output"] == "embedding":
        return (vectors * given).sum()
    unit = normalize(vectors, dim=1)
    if config["output"] == "cos_similarity_matrix":
        return (unit @ unit.T * given).sum()
    cosines = unit[:2] @ unit[2:].T / 0.05
    own = torch.arange(2)
    return (cross_entropy(cosines, own) + cross_entropy(cosines[:, :2].T, own)) / 2


CONFIGS = [
    {"output": "embedding", "pooling": "mean"},
    {"output": "embedding", "pooling": "last"},
    {"output": "cos_similarity_matrix", "pooling": "mean"},
    {**CONTRAST, "pooling": "last"},
]


def name_config(config: dict[str, float | str]) -> str:
    return f"{config['output']}-{config['pooling']}"


def prepare(data: list[Datum], config: dict[str, float | str]) -> tuple[list[Datum], torch.Tensor]:
    width = WIDTH if config["output"] == "embedding" else len(data)
    gradients = draw(len(data), width)
    return give(data, gradients), torch.from_numpy(np.stack(gradients))


@pytest.mark.parametrize("config", CONFIGS, ids=name_config)
def test_an_adapters_gradients_are_those_of_peft_and_torch(
    path: Path,
    tmp_path: Path,
    stir: Stir,
    data: list[Datum],
    config: dict[str, float | str],
) -> None:
    engine = Engine.load(path, token_budget=40)
    engine.create_adapter("run", Spec(rank=4, train_unembed=True))
    stir(engine, "run")
    engine.save_weights("run", tmp_path / "saved", optimizer=False)
    given_data, given = prepare(data, config)
    output = ask(engine, given_data, config=config)
    model = load_peft(path, tmp_path / "saved")
    loss = compute_loss(pool_plainly(model, data, str(config["pooling"])), config, given)  # type: ignore[arg-type]
    loss.backward()
    assert output.metrics["loss:sum"] == pytest.approx(loss.item(), rel=1e-5, abs=1e-5)
    weights = engine.find_weights("run")
    found = weights.view(weights.gradients)
    scale = float(weights.gradients.abs().max())
    for name, expected in read_peft_gradients_of_layers(model).items():
        torch.testing.assert_close(found[name], expected, atol=1e-5 * max(1, scale), rtol=1e-4)
    assert weights.counts.num_sequences == len(data)
    is_contrast = config["output"] == "contrastive_loss"
    assert ("loss" in output.metrics) is is_contrast
    assert weights.gradients.any()


def read_peft_gradients_of_layers(model: object) -> dict[str, torch.Tensor]:
    """The head is trained and has no part in a vector."""
    for name, parameter in model.named_parameters():  # type: ignore[attr-defined]
        if parameter.requires_grad and parameter.grad is None:
            assert "lm_head" in name
            parameter.grad = torch.zeros_like(parameter)
    return read_peft_gradients(model)  # type: ignore[arg-type]


@pytest.mark.parametrize("config", CONFIGS, ids=name_config)
def test_gradients_of_all_weights_are_those_of_torch(
    path: Path, data: list[Datum], config: dict[str, float | str]
) -> None:
    engine = Engine.load(path, token_budget=40)
    engine.create_adapter("run", Spec(rank=0))
    given_data, given = prepare(data, config)
    ask(engine, given_data, config=config)
    model = load_plainly(path)
    compute_loss(pool_plainly(model, data, str(config["pooling"])), config, given).backward()
    weights = engine.find_weights("run")
    found = weights.view(weights.gradients)
    scale = max(1.0, float(weights.gradients.abs().max()))
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found[name], expected, atol=1e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_are_those_of_transformers_and_what_else_a_datum_has_is_no_matter(
    path: Path, data: list[Datum], pooling: str
) -> None:
    engine = Engine.load(path, token_budget=40)
    engine.create_adapter("run", Spec(rank=4))
    config = {"output": "embedding", "pooling": pooling}
    output = ask(engine, data, config=config, forward_only=True)
    with torch.no_grad():
        vectors = pool_plainly(load_plainly(path), data, pooling)
        cosines = normalize(vectors, dim=1) @ normalize(vectors, dim=1).T
    assert output.vectors is not None
    np.testing.assert_allclose(np.stack(output.vectors), vectors.numpy(), atol=1e-5)
    config = {"output": "cos_similarity_matrix", "pooling": pooling}
    output = ask(engine, data, config=config, forward_only=True)
    assert output.vectors is not None
    np.testing.assert_allclose(np.stack(output.vectors), cosines.numpy(), atol=1e-5)
    assert not engine.has_gradients("run")


def test_datums_that_begin_alike_share_their_beginning(engine: Engine, stir: Stir) -> None:
    stir(engine, "run")
    (long,) = make_data(60)
    data = [replace(long, tokens=long.tokens[:length]) for length in (60, 40, 60)]
    given = give(data, draw(3, WIDTH))
    config = {"output": "embedding"}
    together = ask(engine, given, config=config)
    gradients = engine.find_weights("run").gradients.clone()
    engine.drop_gradients("run")
    apart = [ask(engine, [datum], config=config) for datum in given]
    torch.testing.assert_close(
        engine.find_weights("run").gradients, gradients, atol=1e-5, rtol=1e-4
    )
    for left, right in zip(together.vectors or (), apart, strict=True):
        np.testing.assert_allclose(left, (right.vectors or ())[0], atol=1e-5)


def test_runs_that_ask_for_vectors_and_for_logprobs_do_not_touch_each_other(
    engine: Engine, stir: Stir, data: list[Datum]
) -> None:
    engine.create_adapter("other", Spec(rank=2))
    engine.create_adapter("third", Spec(rank=2))
    for run in ("run", "other", "third"):
        stir(engine, run)
    vectors = ForwardBackward(data=data, config=CONTRAST)
    requests = {"run": vectors, "other": vectors, "third": ForwardBackward(data=data)}
    alone = {}
    for run, request in requests.items():
        engine.forward_backward({run: request})
        alone[run] = engine.find_weights(run).gradients.clone()
        engine.drop_gradients(run)
    engine.forward_backward(requests)
    for run, expected in alone.items():
        found = engine.find_weights(run).gradients
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert expected.any()


def test_a_loss_of_vectors_goes_down(engine: Engine, data: list[Datum]) -> None:
    losses = []
    for _ in range(4):
        losses.append(ask(engine, data, config=CONTRAST).metrics["loss:sum"])
        engine.optim_step("run", AdamParams(learning_rate=1e-2))
    look = ask(engine, data, config=CONTRAST, forward_only=True)
    assert losses[0] > losses[-1] > look.metrics["loss:sum"]
    assert look.metrics["loss"] == look.metrics["loss:sum"]


def test_a_repeated_request_gives_the_same_bits(engine: Engine, data: list[Datum]) -> None:
    gradients = []
    for _ in range(2):
        ask(engine, data, config=CONTRAST)
        gradients.append(engine.find_weights("run").gradients.clone())
        engine.drop_gradients("run")
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"output": "entropy"}, "config 'output' is 'entropy': this model gives logprobs, embed"),
        ({"output": "embedding", "pooling": "max"}, "config 'pooling' is 'max': say 'mean' or 'l"),
        ({"output": "embedding", "beta": 1.0}, "config 'beta': the output embedding knows output"),
        ({"output": "embedding"}, "datum 0: embedding_grads is missing"),
        ({**CONTRAST, "temperature": 0.0}, "config 'temperature' is 0.0: send a number from"),
        ({**CONTRAST, "num_queries": 3.0}, "data has 6 datums: 3 queries, as many documents and 2"),
        ({**CONTRAST, "num_queries": 1.5}, "config 'num_queries' is 1.5: send a whole number"),
        ({"output": "contrastive_loss"}, "config 'num_queries' is missing"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    engine: Engine, data: list[Datum], config: dict[str, float | str], words: str
) -> None:
    assert words in read_refusal(engine, data, config=config)
    assert not engine.has_gradients("run")


def test_gradients_of_another_width_are_refused(engine: Engine, data: list[Datum]) -> None:
    config = {"output": "embedding"}
    wrong = read_refusal(engine, give(data, draw(6, 7)), config=config)
    assert "has the shape (7,), what the forward gave for it (48,)" in wrong
    config = {"output": "cos_similarity_matrix"}
    assert "has the shape (48,), what the forward gave for it (6,)" in read_refusal(
        engine, give(data, draw(6, 48)), config=config
    )
    assert "is not finite" in read_refusal(
        engine, give(data, [np.full(6, np.inf, np.float32)] * 6), config=config
    )
    assert "goes with the loss_fn cross_entropy" in read_refusal(
        engine, data, config=config, loss_fn="ppo"
    )
    assert "data is empty" in read_refusal(engine, [], config=config)


@pytest.fixture(params=[4, 0], ids=["adapter", "whole"])
def engines(
    request: pytest.FixtureRequest, lead: Lead, random_paths: dict[str, Path]
) -> Iterator[tuple[Engine, Engine]]:
    single = Engine.load(random_paths["llama"], token_budget=BUDGET)
    double = load(lead, random_paths["llama"])
    for engine in (single, double):
        engine.create_adapter("run", Spec(rank=request.param))
    yield single, double
    lead.close(double)


@pytest.mark.parametrize("config", CONFIGS[1:], ids=name_config)
def test_ranks_find_together_what_one_finds(
    engines: tuple[Engine, Engine], data: list[Datum], config: dict[str, float | str]
) -> None:
    given, _ = prepare(data, config)
    told = []
    for engine in engines:
        output = ask(engine, given, config=config)
        step = engine.optim_step("run", AdamParams(learning_rate=1e-3))
        look = ask(engine, data, config=config, forward_only=True)
        told.append((output.metrics, step.metrics, look.vectors))
    for single, double in zip(*told, strict=True):
        if isinstance(single, dict):
            assert double == pytest.approx(single, rel=1e-4, abs=1e-5)
    for left, right in zip(told[0][2] or (), told[1][2] or (), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)
