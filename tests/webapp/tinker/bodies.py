"""The right body of each call of the Tinker wire, for tests that make them wrong."""

from collections.abc import Mapping
from typing import Any

from tests.training.tracing import LOGPROBS, call, make_graph, write_inputs

# The right body of each call; a call that is missing here gets fields of all the others.
TEMPLATES: Mapping[str, Mapping[str, Any]] = {
    "client/config": {"sdk_version": "0.38.0"},
    "client/dynamic_config": {"sdk_version": "0.38.0"},
    "telemetry": {"events": [], "platform": "Linux", "session_id": "$session"},
    "create_session": {
        "tags": ["a"],
        "user_metadata": {"name": "n"},
        "sdk_version": "0.38.0",
        "display_name": "d",
    },
    "sessions/search": {
        "session_id": "$session",
        "display_name": "d",
        "user_metadata": {"name": "n"},
        "owner": {"type": "user", "owner_urns": ["hone:user:1"]},
        "statuses": [{"type": "client_finished", "reasons": ["success"]}],
        "limit": 5,
        "cursor": {"last_created_at": "2026-11-25T00:00:00Z", "last_session_id": "$session"},
    },
    "sessions/<session_id>/project": {"project_id": "prj-none"},
    "sessions/<session_id>/finish": {"reason": {"type": "success"}, "detail": "done"},
    "create_model": {
        "session_id": "$session",
        "model_seq_id": "$number",
        "base_model": "tiny-chatml-1m",
        "lora_config": {"rank": 8, "seed": 1, "train_mlp": True},
        "optimizer_config": {"type": "adamw"},
        "user_metadata": {"name": "n"},
    },
    "get_info": {"model_id": "$model"},
    "optim_step": {
        "model_id": "$model",
        "seq_id": "$number",
        "adam_params": {"learning_rate": 0.001, "beta1": 0.9, "eps": 1e-8, "grad_clip_norm": 1},
    },
    "create_custom_loss": {
        "session_id": "$session",
        "custom_loss_seq_id": "$number",
        "name": "mine",
        "inputs": write_inputs(logprobs=1, weights=1),
        "graph": make_graph(call("torch.sum", LOGPROBS)),
    },
    "save_weights": {
        "model_id": "$model",
        "seq_id": "$number",
        "path": "000010",
        "ttl_seconds": 7200,
        "overwrite": True,
        "user_metadata": {"a": "b"},
    },
    "save_weights_for_sampler": {
        "model_id": "$model",
        "seq_id": "$number",
        "kind": "snapshot",
        "sampling_session_seq_id": 3,
        "ttl_seconds": 7200,
    },
    "save_weights_external": {
        "model_id": "$model",
        "seq_id": "$number",
        "path": "hf",
        "ttl_seconds": 7200,
        "age_encryption_recipients": [],
    },
    "load_weights": {
        "session_id": "$session",
        "model_seq_id": "$number",
        "path": "$checkpoint",
        "optimizer": True,
        "base_model": "tiny-chatml-1m",
        "user_metadata": {"name": "n"},
    },
    "create_sampling_session": {
        "session_id": "$session",
        "sampling_session_seq_id": "$number",
        "model_path": "$checkpoint",
    },
    "asample": {
        "sampling_session_id": "$sampler",
        "seq_id": "$number",
        "num_samples": 2,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
        "sampling_params": {"max_tokens": 3, "seed": 5, "stop": ["\n"], "top_k": -1, "top_p": 1.0},
        "prompt_logprobs": True,
        "prompt_logprobs_last_n": 1,
        "topk_prompt_logprobs": 2,
        "topk_sample_logprobs": 1,
        "prompt_alt_tokens_k": 1,
        "target_prompt_logprobs": {"data": [1, -1], "dtype": "int64", "shape": [2, 1]},
        "record_stability_info": False,
    },
    "join_sampling_session": {"sampling_session_id": "$sampler"},
    "copy_weights": {
        "source_path": "$checkpoint",
        "session_id": "$session",
        "model_seq_id": "$number",
        "ttl_seconds": 7200,
    },
    "auth/token": {},
    "cancel_future": {"request_id": "call-1"},
    "weights_info": {"tinker_path": "$checkpoint"},
    "training_runs/<run_id>/checkpoints/<kind>/<name>/ttl": {"ttl_seconds": 7200},
}
EVERYTHING = {name: value for fields in TEMPLATES.values() for name, value in fields.items()}

# Answered before Django.
DOORS: Mapping[str, Mapping[str, Any]] = {
    "retrieve_future": {"request_id": "$request", "allow_metadata_only": True},
    "retrieve_futures": {
        "target": {
            "type": "sampling_session",
            "sampling_session_id": "$sampler",
            "cloned_sampler_id": 0,
        },
        "prev_cursor": 0,
        "timeout": 0.0,
        "retrieved_request_ids": ["$request"],
    },
    "session_heartbeat": {"session_id": "$session"},
}
