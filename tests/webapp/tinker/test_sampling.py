"""The sampling side of the wire, and the lists."""

import math
from typing import Any

import pytest
from django.utils.timezone import now

from tests.webapp.tinker.conftest import Program
from webapp.checkpoints.models import Checkpoint
from webapp.deployments.models import SamplingCall
from webapp.fleet.models import BaseModel
from webapp.runs.models import Run


@pytest.fixture
def sampler_id(program: Program, base_model: BaseModel) -> str:
    session = program.open_session()
    return str(open_sampler(program, session, base_model=base_model.name)["sampling_session_id"])


def open_sampler(program: Program, session: str, **weights: str) -> Any:
    fields = {"session_id": session, "sampling_session_seq_id": 0, **weights}
    return program.post("create_sampling_session", **fields)


def sample(program: Program, sampler_id: str, **changes: Any) -> Any:
    fields: dict[str, Any] = {
        "sampling_session_id": sampler_id,
        "seq_id": 0,
        "num_samples": 2,
        "prompt": {"chunks": [{"tokens": [1, 2, 3], "type": "encoded_text"}]},
        "sampling_params": {"max_tokens": 3, "temperature": 0.7, "top_k": -1, "top_p": 1.0},
        "prompt_logprobs": False,
        "topk_prompt_logprobs": 0,
    }
    return program.post("asample", **{**fields, **changes})


def save(model_id: str, program: Program, **columns: Any) -> Checkpoint:
    run = Run.objects.get(session_id=model_id.split(":", maxsplit=1)[0])
    defaults = {
        "kind": Checkpoint.Kind.SAMPLER,
        "name": "one",
        "step": 1,
        "seq": 1,
        "path": "checkpoints/x",
        "digest": "d",
        "size_bytes": 10,
        "rank": run.rank,
    }
    return Checkpoint.objects.create(
        project=run.project, run=run, base_model=run.base_model, **defaults | columns
    )


def test_a_sampling_client_of_the_base_model(
    program: Program, sampler_id: str, base_model: BaseModel
) -> None:
    assert program.read(f"samplers/{sampler_id}") == {
        "sampler_id": sampler_id,
        "base_model": base_model.name,
        "model_path": None,
    }


def test_a_sampling_client_whose_checkpoint_was_deleted_says_so(
    program: Program, model_id: str
) -> None:
    checkpoint = save(model_id, program)
    opened = open_sampler(program, program.open_session(), model_path=checkpoint.tinker_path)
    Checkpoint.objects.update(deleted_at=now())
    answer = sample(program, opened["sampling_session_id"])
    assert program.status == 400
    assert "The checkpoint one of this sampling client was deleted" in answer["detail"]
    assert not SamplingCall.objects.exists()


def test_a_sampling_client_of_a_checkpoint(program: Program, model_id: str) -> None:
    checkpoint = save(model_id, program)
    session = program.open_session()
    opened = open_sampler(program, session, model_path=checkpoint.tinker_path)
    again = open_sampler(program, session, model_path=checkpoint.tinker_path)
    assert opened == again
    sampler = program.read(f"samplers/{opened['sampling_session_id']}")
    assert sampler["model_path"] == f"tinker://{model_id}/sampler_weights/one"


def test_a_sample_is_a_call_with_an_id_for_each_sequence(program: Program, sampler_id: str) -> None:
    answer = sample(program, sampler_id)
    call = SamplingCall.objects.get()
    assert answer == {
        "request_id": f"call-{call.pk}",
        "sample_sequence_ids": [f"{sampler_id}/0/0", f"{sampler_id}/0/1"],
    }
    assert call.payload["prompt"] == [1, 2, 3]
    assert call.payload["params"]["stop"] is None
    assert sample(program, sampler_id) == answer
    assert SamplingCall.objects.count() == 1


def test_a_sample_costs_a_few_queries(
    program: Program, model_id: str, django_assert_num_queries: Any
) -> None:
    path = save(model_id, program).tinker_path
    opened = open_sampler(program, program.open_session(), model_path=path)
    sample(program, opened["sampling_session_id"])
    with django_assert_num_queries(5):  # the session, what waits, and an insert in a savepoint
        sample(program, opened["sampling_session_id"], seq_id=1)


def test_a_repeated_seq_id_with_another_prompt_is_refused(
    program: Program, sampler_id: str
) -> None:
    sample(program, sampler_id)
    sample(program, sampler_id, num_samples=1)
    assert program.status == 400


@pytest.mark.parametrize(
    ("stop", "kept"), [("\n", ["\n"]), (["a", "b"], ["a", "b"]), ([7], [7]), ([], []), (None, None)]
)
def test_stops_are_strings_or_token_ids_or_nothing_at_all(
    program: Program, sampler_id: str, stop: Any, kept: Any
) -> None:
    sample(program, sampler_id, sampling_params={"stop": stop})
    params = SamplingCall.objects.get().payload["params"]
    assert (params["stop"], params["max_tokens"]) == (kept, None)


def make_targets(data: list[Any], shape: list[int], **options: Any) -> dict[str, Any]:
    return {"data": data, "shape": shape, "dtype": "int64", **options}


def make_prompt(*tokens: int) -> dict[str, Any]:
    return {"chunks": [{"tokens": list(tokens), "type": "encoded_text"}]}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"prompt": make_prompt()}, "The prompt is empty"),
        ({"prompt": {}}, "The prompt is empty"),
        ({"prompt": make_prompt(1, 1000)}, "1000 at position 1"),
        ({"prompt": make_prompt(-1)}, "-1 at position 0"),
        ({"prompt": {"chunks": [{"tokens": ["1"]}]}}, "prompt.chunks.0.tokens"),
        ({"prompt": {"chunks": [{"type": "image", "data": ""}]}}, "of type image"),
        ({"prompt": {"chunks": [5]}}, "prompt.chunks"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"num_samples": 100_000}, "num_samples is 100000"),
        ({"sampling_params": {"max_tokens": 0}}, "max_tokens is 0"),
        ({"sampling_params": {"temperature": -1}}, "temperature"),
        ({"sampling_params": {"top_p": 0}}, "top_p"),
        ({"sampling_params": {"top_k": -2}}, "top_k is -2"),
        ({"sampling_params": {"stop": [1, "a"]}}, "stop is a string"),
        ({"sampling_params": {"stop": {"a": 1}}}, "stop is a string"),
        ({"sampling_params": {"seed": "x"}}, "seed"),
        ({"num_samples": 1.5}, "num_samples is 1.5"),
        ({"num_samples": True}, "num_samples is true"),
        ({"seq_id": "0"}, 'seq_id is "0"'),
        ({"seq_id": None}, "seq_id is required"),
        ({"seq_id": 2**63}, "seq_id is 9223372036854775808"),
        ({"sampling_session_id": 5}, "sampling_session_id is 5"),
        ({"prompt": [1]}, "prompt is [1]"),
        ({"prompt": {"chunks": [{"tokens": [1], "type": "dmel"}]}}, "of type dmel"),
        ({"prompt": make_prompt(10**30)}, "at position 0"),
        ({"sampling_params": 1}, "sampling_params is 1"),
        ({"sampling_params": {"max_tokens": 2**70}}, "max_tokens is"),
        ({"sampling_params": {"max_tokens": 1.5}}, "max_tokens is 1.5"),
        ({"sampling_params": {"temperature": "hot"}}, 'temperature is "hot"'),
        ({"sampling_params": {"temperature": 10**400}}, "send a finite number"),
        ({"sampling_params": {"temperature": math.inf}}, "send a finite number"),
        ({"sampling_params": {"temperature": math.nan}}, "send a finite number"),
        ({"sampling_params": {"top_p": 1.1}}, "top_p"),
        ({"sampling_params": {"seed": 2**64}}, "seed is 18446744073709551616"),
        ({"sampling_params": {"stop": [True]}}, "stop is a string"),
        ({"sampling_params": {"stop": [""]}}, "a stop string is empty"),
        ({"sampling_params": {"stop": ["a"] * 101}}, "stop has 101 strings"),
        ({"sampling_params": {"stop": [-1]}}, "stop has the token id -1"),
        ({"prompt_logprobs": 1}, "prompt_logprobs is 1"),
        ({"record_stability_info": "yes"}, 'record_stability_info is "yes"'),
        ({"topk_prompt_logprobs": -1}, "topk_prompt_logprobs is -1"),
        ({"topk_prompt_logprobs": 2**40}, "topk_prompt_logprobs is 1099511627776"),
        ({"topk_sample_logprobs": "5"}, 'topk_sample_logprobs is "5"'),
        ({"topk_sample_logprobs": 1001}, "topk_sample_logprobs is 1001"),
        ({"prompt_alt_tokens_k": 101}, "prompt_alt_tokens_k is 101"),
        ({"prompt_logprobs_last_n": 1}, "prompt_logprobs_last_n needs prompt_logprobs"),
        ({"prompt_logprobs_last_n": 3, "prompt_logprobs": True}, "last_n is 3"),
        ({"prompt_logprobs_last_n": 0, "prompt_logprobs": True}, "last_n is 0"),
        ({"target_prompt_logprobs": [5]}, "target_prompt_logprobs is [5]"),
        ({"target_prompt_logprobs": {"data": [0]}}, "target_prompt_logprobs.shape has two"),
        ({"target_prompt_logprobs": make_targets([1], [2, 1])}, "do not fit the shape"),
        ({"target_prompt_logprobs": make_targets([1], [1, 1])}, "each of the 2 tokens"),
        ({"target_prompt_logprobs": make_targets([1, 1000], [2, 1])}, "1000 at cell 1"),
        ({"target_prompt_logprobs": make_targets([-1, -1], [2, 1])}, "names no token"),
        ({"target_prompt_logprobs": make_targets([1, 2**63], [2, 1])}, "beyond int64"),
        ({"target_prompt_logprobs": make_targets([1.5, 2], [2, 1])}, "logprobs.data is [1.5, 2]"),
        (
            {"target_prompt_logprobs": make_targets([1, 1], [2, 1], dtype="float32")},
            "target_prompt_logprobs.dtype is not int64",
        ),
        (
            {
                "target_prompt_logprobs": make_targets(
                    [1], [2, 9], sparse_crow_indices=[0, 1, 1], sparse_col_indices=[9]
                )
            },
            "do not fit the shape",
        ),
        (
            {"target_prompt_logprobs": make_targets([1], [2, 9], sparse_crow_indices=[0, 1, 1])},
            "do not fit the shape",
        ),
        ({"seq_id": -1}, "seq_id is -1"),
        ({"sampling_params": {"max_tokens": 254}}, "window: 3 + 254 > 256"),
        (
            {"prompt": make_prompt(*[1] * 256), "sampling_params": {}},
            "context window: 256 + 1 > 256",
        ),
    ],
)
def test_what_cannot_be_sampled_is_refused_by_name(
    program: Program, sampler_id: str, changes: dict[str, Any], complaint: str
) -> None:
    answer = sample(program, sampler_id, **changes)
    assert program.status == 400
    assert complaint in answer["detail"]
    assert not SamplingCall.objects.exists()


def test_everything_that_may_be_asked_is_kept_in_the_row(program: Program, sampler_id: str) -> None:
    asked = {
        "prompt_logprobs": True,
        "prompt_logprobs_last_n": 2,
        "topk_prompt_logprobs": 5,
        "topk_sample_logprobs": 6,
        "prompt_alt_tokens_k": 7,
    }
    targets = make_targets([8], [2, 9], sparse_crow_indices=[0, 1, 1], sparse_col_indices=[3])
    sample(
        program,
        sampler_id,
        target_prompt_logprobs=targets,
        record_stability_info=True,
        **asked,
    )
    assert program.status == 200
    payload = SamplingCall.objects.get().payload
    assert {name: payload[name] for name in asked} == asked
    del targets["dtype"]
    assert payload["target_prompt_logprobs"] == targets


def test_fields_that_are_null_or_missing_take_their_defaults(
    program: Program, sampler_id: str
) -> None:
    names = ("num_samples", "prompt_logprobs", "topk_prompt_logprobs", "record_stability_info")
    nothing = dict.fromkeys((*names, "prompt_logprobs_last_n", "target_prompt_logprobs"))
    sample(program, sampler_id, sampling_params={}, **nothing)
    assert program.status == 200
    assert SamplingCall.objects.get().payload == {
        "prompt": [1, 2, 3],
        "num_samples": 1,
        "params": {
            "max_tokens": None,
            "temperature": 1.0,
            "top_k": -1,
            "top_p": 1.0,
            "seed": None,
            "stop": None,
        },
        "prompt_logprobs": False,
    }


def test_a_prompt_may_come_in_pieces(program: Program, sampler_id: str) -> None:
    chunks = [{"tokens": [1, 2]}, {"tokens": []}, {"tokens": [3], "type": "encoded_text"}]
    sample(program, sampler_id, prompt={"chunks": chunks})
    assert SamplingCall.objects.get().payload["prompt"] == [1, 2, 3]


def test_an_abandoned_sample_is_cancelled(
    program: Program, stranger: Program, sampler_id: str
) -> None:
    request_id = sample(program, sampler_id)["request_id"]
    stranger.post("cancel_future", request_id=request_id)
    assert SamplingCall.objects.get().status == SamplingCall.Status.QUEUED
    program.post("cancel_future", request_id=request_id)
    assert SamplingCall.objects.get().status == SamplingCall.Status.CANCELLED


def test_another_projects_samplers_and_checkpoints_do_not_exist(
    program: Program, stranger: Program, model_id: str, sampler_id: str
) -> None:
    checkpoint = save(model_id, program)
    stranger.read(f"samplers/{sampler_id}")
    assert stranger.status == 404
    sample(stranger, sampler_id)
    assert stranger.status == 404
    open_sampler(stranger, stranger.open_session(), model_path=checkpoint.tinker_path)
    assert stranger.status == 404
    stranger.post("weights_info", tinker_path=checkpoint.tinker_path)
    assert stranger.status == 404
    stranger.send("DELETE", f"training_runs/{model_id}/checkpoints/sampler_weights/one", {})
    assert stranger.status == 404
    assert stranger.read("checkpoints")["checkpoints"] == []


def test_models_that_may_be_trained_are_listed(program: Program, base_model: BaseModel) -> None:
    assert program.read("get_server_capabilities")["supported_models"] == [
        {
            "model_name": base_model.name,
            "max_context_length": 256,
            "trainable": True,
            "sampleable": True,
        }
    ]


def test_runs_and_their_checkpoints_are_listed_in_pages(program: Program, model_id: str) -> None:
    save(model_id, program, kind=Checkpoint.Kind.TRAINING, has_optimizer=True)
    save(model_id, program, name="two", seq=2)
    save(model_id, program, name="hidden", seq=3, is_ephemeral=True)
    run = program.read(f"training_runs/{model_id}")
    assert run["last_checkpoint"]["checkpoint_id"] == "weights/one"
    assert run["last_sampler_checkpoint"]["tinker_path"].endswith("sampler_weights/two")
    assert program.read("training_runs?limit=1")["training_runs"] == [run]
    listed = program.read(f"training_runs/{model_id}/checkpoints")["checkpoints"]
    assert [each["checkpoint_id"] for each in listed] == ["sampler_weights/two", "weights/one"]
    page = program.read("checkpoints?limit=1&offset=1")
    assert [each["checkpoint_id"] for each in page["checkpoints"]] == ["weights/one"]
    assert page["cursor"] == {"offset": 1, "limit": 1, "total_count": 2}
    program.read("checkpoints?limit=-1")
    assert program.status == 400


def test_a_checkpoint_tells_what_it_is_of(program: Program, model_id: str) -> None:
    info = program.post("weights_info", tinker_path=save(model_id, program).tinker_path)
    assert (info["base_model"], info["lora_rank"]) == ("tiny-chatml-1m", 8)


def test_a_checkpoint_is_published_given_a_lifetime_and_deleted(
    program: Program, model_id: str
) -> None:
    checkpoint = save(model_id, program)
    path = f"training_runs/{model_id}/checkpoints/sampler_weights/one"
    program.send("POST", f"{path}/publish", {})
    program.send("PUT", f"{path}/ttl", {"ttl_seconds": 3600})
    checkpoint.refresh_from_db()
    assert checkpoint.is_public
    assert checkpoint.expires_at is not None
    program.send("DELETE", path, {})
    assert program.status == 204
    program.send("DELETE", path, {})
    assert program.status == 404


def test_a_session_tells_what_it_holds(program: Program, model_id: str) -> None:
    session_id = model_id.split(":", maxsplit=1)[0]
    assert program.read("sessions") == {"sessions": [session_id]}
    assert program.read(f"sessions/{session_id}")["training_run_ids"] == [model_id]


def test_a_model_is_made_from_a_checkpoint(program: Program, model_id: str) -> None:
    checkpoint = save(model_id, program, kind=Checkpoint.Kind.TRAINING, has_optimizer=True)
    fields = {
        "session_id": program.open_session(),
        "model_seq_id": 0,
        "path": checkpoint.tinker_path,
        "optimizer": True,
    }
    answer = program.post("load_weights", **fields)
    branch = Run.objects.get(parent=checkpoint)
    assert answer["model_id"] == branch.model_id
    assert (branch.with_optimizer, branch.rank) == (True, 8)
    assert branch.operations.get(seq=0).kind == "load_weights"
    assert program.post("load_weights", **fields) == answer


def test_weights_saved_for_sampling_have_no_optimizer_to_load(
    program: Program, model_id: str
) -> None:
    path = save(model_id, program).tinker_path
    session = program.open_session()
    fields = {"session_id": session, "model_seq_id": 0, "path": path, "optimizer": True}
    answer = program.post("load_weights", **fields)
    assert program.status == 400
    assert "without its optimizer" in answer["detail"]
    again = program.post("load_weights", model_id=model_id, seq_id=1, path=path, optimizer=True)
    assert program.status == 400
    assert "without its optimizer" in again["detail"]


def test_weights_are_loaded_into_a_model_that_exists(program: Program, model_id: str) -> None:
    path = save(model_id, program).tinker_path
    program.post("load_weights", model_id=model_id, seq_id=1, path=path, optimizer=False)
    assert program.status == 200
    assert Run.objects.get().operations.get(seq=1).kind == "load_weights"
