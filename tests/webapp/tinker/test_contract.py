"""The error contract, case by case: the status, and the words that name the field and the limit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.webapp.tinker.conftest import Program, make_datum, make_request
from training.types import Datum, ForwardBackward
from webapp.fleet.models import BaseModel
from webapp.runs.models import Operation

MODEL = "tiny-chatml-1m"


class Place:
    """What a body names: a session, a model with a seq of its own, a sampling session."""

    def __init__(self, program: Program, base_model: BaseModel) -> None:
        self.model = program.open_model(base_model)
        self.session = self.model.split(":", maxsplit=1)[0]
        opened = program.post(
            "create_sampling_session",
            session_id=self.session,
            sampling_session_seq_id=0,
            base_model=base_model.name,
        )
        self.sampler = opened["sampling_session_id"]


@pytest.fixture
def place(program: Program, base_model: BaseModel) -> Place:
    return Place(program, base_model)


Case = tuple[str, dict[str, Any], int, str]


def create_model(status: int, words: str, **fields: Any) -> Case:
    right = {"session_id": "$session", "model_seq_id": 1, "base_model": MODEL}
    return "create_model", {**right, **fields}, status, words


def open_sampler(status: int, words: str, **fields: Any) -> Case:
    right = {"session_id": "$session", "sampling_session_seq_id": 1, "base_model": MODEL}
    return "create_sampling_session", {**right, **fields}, status, words


def step(status: int, words: str, **fields: Any) -> Case:
    return "optim_step", {"model_id": "$model", "seq_id": 1, **fields}, status, words


def adam(words: str, **params: Any) -> Case:
    return step(400, words, adam_params=params)


def save(status: int, words: str, **fields: Any) -> Case:
    right = {"model_id": "$model", "seq_id": 1, "path": "one"}
    return "save_weights", {**right, **fields}, status, words


def sample(status: int, words: str, **fields: Any) -> Case:
    chunks = [{"type": "encoded_text", "tokens": [1, 2, 3]}]
    right = {"sampling_session_id": "$sampler", "seq_id": 0, "prompt": {"chunks": chunks}}
    return "asample", {**right, **fields}, status, words


def ask(words: str, **params: Any) -> Case:
    return sample(400, words, sampling_params=params)


def prompt(words: str, *chunks: Any) -> Case:
    return sample(400, words, prompt={"chunks": chunks})


NOTHING = {"train_unembed": False, "train_mlp": False, "train_attn": False}
JSON_CASES: list[Case] = [
    # The vendor's own words, where what they speak of exists here.
    create_model(400, "base_model is required", base_model=None),
    create_model(400, "lora_config.rank must be positive", lora_config={"rank": 0}),
    create_model(400, "lora_config.rank must be positive", lora_config={"rank": -8}),
    create_model(
        400,
        "At least one of train_unembed, train_mlp, or train_attn must be True",
        lora_config=NOTHING,
    ),
    ask(
        "Prompt length plus max_tokens exceeds the model's context window: 3 + 254 > 256",
        max_tokens=254,
    ),
    # Models and sessions
    create_model(400, "choose one from 1 to 512", lora_config={"rank": 513}),
    create_model(400, 'lora_config.rank is "8"', lora_config={"rank": "8"}),
    create_model(400, "lora_config is [8]; send an object", lora_config=[8]),
    create_model(400, "lora_config.train_mlp is 1; send true", lora_config={"train_mlp": 1}),
    create_model(400, "no base model acme/none", base_model="acme/none"),
    create_model(400, "optimizer_config.type sgd", optimizer_config={"type": "sgd"}),
    create_model(400, "model_seq_id is required", model_seq_id=None),
    create_model(400, "model_seq_id is -1; send a whole number from 0", model_seq_id=-1),
    create_model(400, "model_seq_id is 1.5; send a whole number", model_seq_id=1.5),
    create_model(404, "no session ses-none", session_id="ses-none"),
    ("get_info", {"model_id": "ses-none:train:0"}, 404, "no model ses-none:train:0"),
    # Optimizer
    step(404, "no model x", model_id="x"),
    step(400, "seq_id is 0; send a whole number from 1", seq_id=0),
    step(400, "seq_id is 2147483648; send a whole number from 1 to 2147483647", seq_id=2**31),
    adam("adam_params.learning_rate is -1.0: send a number of 0 or more", learning_rate=-1),
    adam("adam_params.eps is 1e+300: send a number of 0 or more, and up to 1e+15", eps=1e300),
    adam("adam_params.beta2 is 1.0: send a number from 0 to below 1", beta2=1),
    adam("adam_params.eps is true; send a number", eps=True),
    adam("adam_params.lr is unknown", lr=0.1),
    # Saves
    save(400, "path is required", path=None),
    save(400, "path is the checkpoint's name", path="a/b"),
    save(400, "ttl_seconds is 3599; send a whole number from 3600 to 315360000", ttl_seconds=3599),
    save(400, "ttl_seconds is 315360001", ttl_seconds=315_360_001),
    save(400, 'user_metadata is "x"; send an object', user_metadata="x"),
    ("load_weights", {"model_id": "$model", "seq_id": 1, "path": "one"}, 400, "no checkpoint's"),
    (
        "load_weights",
        {"model_id": "$model", "seq_id": 1, "path": "tinker://ses-x:train:0/weights/one"},
        404,
        "There is no checkpoint tinker://ses-x:train:0/weights/one",
    ),
    ("weights_info", {"tinker_path": "one"}, 400, "it reads tinker://<run>/<kind>/<name>"),
    # Sampling
    open_sampler(400, "base_model is required", base_model=None),
    open_sampler(400, "no base model acme/none", base_model="acme/none"),
    open_sampler(404, "There is no checkpoint", model_path="tinker://a:train:0/weights/b"),
    sample(404, "no sampling session x", sampling_session_id="x"),
    sample(400, "num_samples is 0; send a whole number from 1 to 512", num_samples=0),
    sample(400, "num_samples is 513; send a whole number from 1 to 512", num_samples=513),
    sample(400, "seq_id is -1", seq_id=-1),
    sample(400, "The prompt is empty", prompt={"chunks": []}),
    prompt("prompt.chunks.0.tokens", {"type": "encoded_text", "tokens": "x"}),
    prompt(
        "Token id 1000 at position 1 of the prompt is out of vocabulary: ids are 0 to 999",
        {"type": "encoded_text", "tokens": [1, 1000]},
    ),
    prompt("Token id -1 at position 0 of the prompt", {"type": "encoded_text", "tokens": [-1]}),
    prompt("prompt.chunks.0 is of type image", {"type": "image", "data": "", "format": "png"}),
    prompt("context window", {"type": "encoded_text", "tokens": [1] * 256}),
    ask("sampling_params.max_tokens is 0", max_tokens=0),
    ask("temperature must be 0 or more, not -0.1", temperature=-0.1),
    ask('sampling_params.temperature is "hot"; send a number', temperature="hot"),
    ask("top_p must be above 0 and at most 1, not 0.0", top_p=0),
    ask("top_p must be above 0 and at most 1, not 1.01", top_p=1.01),
    ask("sampling_params.top_k is -2", top_k=-2),
    ask("sampling_params.seed is 0.5", seed=0.5),
    ask("sampling_params.stop is a string, a list", stop=[1, "a"]),
]


@pytest.mark.parametrize(("path", "fields", "status", "words"), JSON_CASES)
def test_a_json_mistake_is_told_by_its_field_and_limit(
    program: Program, place: Place, path: str, fields: dict[str, Any], status: int, words: str
) -> None:
    names = {"$session": place.session, "$model": place.model, "$sampler": place.sampler}
    filled = {
        key: names.get(value, value) if isinstance(value, str) else value
        for key, value in fields.items()
        if value is not None
    }
    answer = program.post(path, **filled)
    assert program.status == status, answer
    assert words in answer["detail"]
    assert not Operation.objects.filter(seq=1).exclude(status=Operation.Status.REFUSED).exists()


def floats(*values: float) -> Any:
    return np.array(values, np.float32)


def bad(**inputs: Any) -> Callable[[], Datum]:
    return lambda: make_datum(4, **inputs)


def long() -> Datum:
    return make_datum(257)


def foreign() -> Datum:
    datum = make_datum(4)
    datum.tokens[3] = 1000
    return datum


DATUM_CASES: list[tuple[str, Callable[[], Datum], str]] = [
    ("cross_entropy", long, "257 tokens do not fit the model's context of 256"),
    ("cross_entropy", foreign, "tokens: 1000 at position 3 is no token of this model"),
    ("cross_entropy", bad(target_tokens=np.array([1, 2, 3, 1000])), "target_tokens: 1000"),
    ("cross_entropy", bad(target_tokens=floats(1, 2, 3, 4)), "target_tokens are float32"),
    ("cross_entropy", bad(weights=floats(1, 1)), "weights has the shape (2,)"),
    ("cross_entropy", bad(weights=floats(1, 1, 1, np.nan)), "weights: nan at position 3"),
    ("importance_sampling", bad(logprobs=floats(0, 0, 0, 0)), "advantages is missing"),
    ("ppo", bad(logprobs=floats(0), advantages=floats(0, 0, 0, 0)), "logprobs has the shape (1,)"),
    (
        "cispo",
        bad(logprobs=floats(0, 0, 0, 0), advantages=floats(0, 0, np.inf, 0)),
        "advantages: inf at position 2",
    ),
]


@pytest.mark.parametrize(("loss_fn", "make", "words"), DATUM_CASES)
def test_a_bad_datum_is_told_by_its_number_its_field_and_the_position(
    program: Program, model_id: str, loss_fn: str, make: Callable[[], Datum], words: str
) -> None:
    policy = {"logprobs": floats(0, 0, 0, 0), "advantages": floats(0, 0, 0, 0)}
    good = make_datum(4, **(policy if loss_fn != "cross_entropy" else {}))
    answer = program.train(model_id, 1, make_request(good, good, make(), loss_fn=loss_fn))
    assert program.status == 400
    assert answer["detail"].startswith(f"datum 2: {words}")
    assert Operation.objects.get(seq=1).error == answer["detail"]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (make_request(loss_fn="mse"), "loss_fn 'mse' is not known here: use one of cross_entropy"),
        (make_request(config={"beta": 0.1}), "config 'beta': cross_entropy knows no keys"),
        (make_request(loss_fn="dro", config={"beta": "x"}), "config 'beta' is 'x': send a finite"),
        (ForwardBackward(data=[]), "data is empty: send at least one datum"),
    ],
)
def test_a_bad_request_is_told_by_its_field(
    program: Program, model_id: str, request_: ForwardBackward, words: str
) -> None:
    answer = program.train(model_id, 1, request_)
    assert program.status == 400
    assert answer["detail"].startswith(words)


def test_a_wrong_address_of_a_checkpoint_says_the_right_form(
    program: Program, model_id: str
) -> None:
    answer = program.send("DELETE", f"training_runs/{model_id}/checkpoints/weight/one", {})
    assert program.status == 404
    assert "Invalid checkpoint identifier. Expected format 'weights/<name>'" in answer["detail"]


def test_no_call_of_the_wire_answers_with_a_status_that_the_sdk_repeats(
    program: Program, model_id: str
) -> None:
    """408, 409, 425, 429 and every 5xx are tried again for minutes."""
    program.train(model_id, 1)
    program.train(model_id, 1, make_request(make_datum(5)))
    assert program.status == 400
    program.send("PATCH", "create_session", {})
    assert program.status == 405
    program.post("nothing/like/this")
    assert program.status == 404
    program.secret = "tml-wrong"
    program.post("create_session")
    assert program.status == 401
