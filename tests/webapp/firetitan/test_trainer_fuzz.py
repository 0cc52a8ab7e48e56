"""Bodies that no SDK sends to a trainer: a sentence or a broken promise for each, and it goes on.

The bodies are the same in every run. `pytest --hypothesis-profile search` looks for new ones.
"""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.webapp.firetitan.conftest import Program
from tests.webapp.firetitan.trainers import Trainer, make_datum, make_job, make_tensor
from tests.webapp.tinker import fuzz
from webapp.firetitan.trainer_urls import urlpatterns
from webapp.fleet.models import BaseModel
from webapp.runs.models import Operation

pytestmark = [pytest.mark.django_db, pytest.mark.slow]

INTERNALS = ("Traceback", 'File "', "Internal error", "object at 0x", "<class", "DoesNotExist")
SPARSE = {"sparse_crow_indices": [0, 1, 1], "sparse_col_indices": [0], "shape": [2, 1]}
PASS = {
    "data": [
        make_datum(weights=make_tensor([0.0, 1, 1, 1])),
        {
            "model_input": {
                "chunks": [{"type": "encoded_text", "tokens": [1, 2]}],
                "routing_matrices": ["AQIA", ""],
            },
            "loss_fn_inputs": {"target_tokens": {"data": [3], "dtype": "int64", **SPARSE}},
        },
    ],
    "loss_fn": "cross_entropy",
    "loss_fn_config": {"output": "embedding", "pooling": "mean", "temperature": 0.1},
}
MODEL = {"model_id": "$model", "seq_id": "$number"}
BODIES: Mapping[str, Mapping[str, Any]] = {
    "create_session": {"tags": ["a"], "user_metadata": {"a": 1}, "sdk_version": "0.23.0"},
    "create_model": {
        "session_id": "$session",
        "model_seq_id": "$number",
        "base_model": "tiny-chatml-1m",
        "lora_config": {"rank": 4, "alpha": 32, "seed": 1, "init_method": "kaiming"},
        "base_only": False,
        "projection_head_dim": None,
        "user_metadata": {"a": 1},
    },
    "get_info": {"model_id": "$model"},
    "forward": {**MODEL, "forward_input": PASS},
    "forward_backward": {**MODEL, "forward_backward_input": PASS},
    "optim_step": {
        **MODEL,
        "adam_params": {"learning_rate": 1e-3, "beta1": 0.9, "emit_grad_norm_metrics": "basic"},
        "grad_accumulation_normalization": "num_sequences",
    },
    "save_weights": {**MODEL, "path": "dcp-1", "overwrite": False, "ttl_seconds": 7200},
    "save_weights_for_sampler": {
        **MODEL,
        "path": "step-1",
        "checkpoint_type": "base",
        "export_precision": "source",
        "metadata": {"decision_calibration": {"a": 1}},
    },
    "load_weights": {**MODEL, "path": "cross_job://j1/dcp-1", "optimizer": True},
    "load_adapter": {**MODEL, "adapter_path": "lora-1"},
    "client/config": {"sdk_version": "0.23.0"},
    "telemetry": {"events": []},
    "unload_model": {"model_id": "$nobody"},
}
WITHOUT_BODY = {"healthz", "get_server_capabilities", "list_checkpoints"}


def fill(template: Any, known: Mapping[str, Any]) -> Any:
    if isinstance(template, dict):
        return {key: fill(value, known) for key, value in template.items()}
    if isinstance(template, list):
        return [fill(value, known) for value in template]
    return known.get(template, template) if isinstance(template, str) else template


@pytest.fixture
def trainer(program: Program, base_model: BaseModel) -> Trainer:
    made = Trainer(program=program, job=make_job(program, base_model))
    made.open_session()
    made.open_model()
    return made


def test_every_path_has_its_bodies() -> None:
    assert {str(pattern.pattern) for pattern in urlpatterns} == set(BODIES) | WITHOUT_BODY


@given(data=st.data())
@settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_body_breaks_the_trainer(trainer: Trainer, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(BODIES)))
    trainer.seq += 1
    known = {"$model": trainer.model_id, "$session": trainer.session_id, "$number": trainer.seq}
    body = data.draw(fuzz.json_bodies(fill(BODIES[path], known)))
    answer = trainer.send("POST", path, body)
    assert trainer.status < 500
    assert not any(word in json.dumps(answer) for word in INTERNALS), answer
    for failed in Operation.objects.filter(seq=trainer.seq, status=Operation.Status.FAILED):
        assert failed.error_category == "user"
        assert not any(word in failed.error for word in INTERNALS), failed.error
