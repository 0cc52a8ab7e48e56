"""What a client did wrong is told in a short sentence, by field, and leaves nothing half done."""

import json
from typing import Any

import numpy as np
import pytest

from tests.webapp.tinker.conftest import Program, make_datum, make_request
from training.errors import MOST_CHARACTERS
from webapp.fleet.models import BaseModel
from webapp.runs.models import Operation, Run, Session

LONG = "x" * 90_000


def nest(levels: int) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for _ in range(levels):
        inner = {"a": inner}
    return inner


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("place", ["%s", '{"deeper": [1, {"x": %s}]}'])
def test_metadata_with_a_number_that_no_json_has_is_refused_by_its_field(
    program: Program, number: str, place: str
) -> None:
    body = f'{{"user_metadata": {{"a": {place % number}}}}}'
    answer = program.send("POST", "create_session", body.encode())
    assert program.status == 400
    assert "user_metadata has a number that is not finite" in answer["detail"]
    assert not Session.objects.exists()


def test_a_models_and_a_checkpoints_metadata_are_held_to_the_same(
    program: Program, base_model: BaseModel, model_id: str
) -> None:
    bad = {"user_metadata": {"a": float("nan")}}
    fields = {"session_id": program.open_session(), "model_seq_id": 1}
    answer = program.post("create_model", **fields, base_model=base_model.name, **bad)
    assert (program.status, "user_metadata" in answer["detail"]) == (400, True)
    answer = program.post("save_weights", model_id=model_id, seq_id=1, path="one", **bad)
    assert (program.status, "user_metadata" in answer["detail"]) == (400, True)
    assert Run.objects.count() == 1
    assert Operation.objects.get(seq=1).status == Operation.Status.REFUSED


def test_metadata_that_is_nested_out_of_sight_is_refused(program: Program) -> None:
    program.post("create_session", user_metadata=nest(20))
    assert program.status == 200
    answer = program.post("create_session", user_metadata=nest(200))
    assert program.status == 400
    assert "user_metadata is more than 32 levels deep" in answer["detail"]


def test_a_refusal_stays_a_sentence_whatever_it_quotes(program: Program, model_id: str) -> None:
    said = [
        program.train(model_id, 1, make_request(loss_fn=LONG))["detail"],
        program.train(model_id, 2, make_request(config={LONG: 1.0}))["detail"],
        program.train(LONG, 1)["detail"],
        program.post("get_info", model_id=LONG)["detail"],
        program.post("weights_info", tinker_path=LONG)["detail"],
        program.send("POST", "forward_backward", b"", **{"Content-Encoding": LONG})["detail"],
    ]
    assert max(len(sentence) for sentence in said) < MOST_CHARACTERS + 10
    # What to do about it stands at its end, and stays.
    assert "cross_entropy" in said[0]
    refused = Operation.objects.filter(status=Operation.Status.REFUSED)
    assert max(len(operation.error) for operation in refused) < MOST_CHARACTERS + 10


def test_a_refusal_has_no_character_that_a_database_cannot_store(
    program: Program, model_id: str
) -> None:
    odd: dict[str, Any] = {"odd\0name": np.ones((4, 1, 1), np.float32)}
    datum = make_datum(4, **odd)
    answer = program.train(model_id, 1, make_request(datum))
    assert program.status == 400
    assert "datum 0: odd\\0name" in answer["detail"]
    assert "\0" not in Operation.objects.get(seq=1).error
    assert json.dumps(answer)
