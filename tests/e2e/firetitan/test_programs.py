"""Whole programs on the Fireworks SDK: bare, managed and research, all at once."""

import time
from typing import Any

import httpx
import pytest

from tests.e2e.firetitan.conftest import PYTHON
from tests.e2e.live import Live, read_report

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MODEL = "accounts/fireworks/models/tiny-chatml-1m"
# Each with what the name of all that it makes begins with.
PROGRAMS = {
    "lora": ("managed.py", "lora", "8"),
    "full": ("managed.py", "full", "0"),
    "research": ("research.py", "one"),
    "several": ("several.py", "one"),
}
# Of all weights a snapshot is in the base model's 16 bits, while the trainer counts in 32.
ADAPTER, ROUNDED = 1e-4, 0.05


@pytest.fixture(scope="module")
def told(live: Live, environment: dict[str, str]) -> dict[str, Any]:
    begun = {
        name: live.begin(
            f"firetitan/{script}",
            f"{word}-{time.time_ns()}",
            *arguments,
            python=PYTHON,
            **environment,
        )
        for name, (script, word, *arguments) in PROGRAMS.items()
    }
    return {name: read_report(program) for name, program in begun.items()}


@pytest.mark.parametrize(("name", "tolerance"), [("lora", ADAPTER), ("full", ROUNDED)])
def test_a_managed_service_trains_and_serves_what_it_saved(
    told: dict[str, Any], name: str, tolerance: float
) -> None:
    report = told[name]
    losses = report["losses"]
    assert losses[-1] < losses[0]
    for served in (report["first"], report["second"]):
        assert served["served"] == pytest.approx(served["trained"], abs=tolerance)
        assert served["answers"][0] == served["answers"][1]  # greedy
        assert all(value <= 0 for row in served["logprobs"] for value in row)
    assert report["first"]["served"] != pytest.approx(report["second"]["served"], abs=tolerance)
    assert report["spread"] > 0


@pytest.mark.parametrize("name", ["lora", "full"])
def test_its_states_are_saved_under_a_name_that_loads_again(
    told: dict[str, Any], name: str
) -> None:
    report = told[name]
    assert report["state"] == "train-state-step-100"
    assert report["states"] == ["train-state-step-100"]
    assert report["restored"] == pytest.approx(report["first"]["trained"], abs=1e-5)
    assert report["frozen"] != pytest.approx(report["first"]["trained"], abs=0.5)


def test_an_adapter_shares_its_trainer_with_its_reference_and_all_weights_have_one_of_their_own(
    told: dict[str, Any],
) -> None:
    assert told["lora"]["reference_job_id"] is None
    assert told["full"]["reference_job_id"] not in (None, told["full"]["job_id"])
    assert told["lora"]["frozen"] == pytest.approx(told["full"]["frozen"], abs=1e-4)
    assert (told["lora"]["is_lora"], told["full"]["is_lora"]) == (True, False)
    assert told["lora"]["capabilities"] == told["full"]["capabilities"] == [MODEL]


def test_what_can_be_promoted_is_promoted_and_what_it_is_is_told(told: dict[str, Any]) -> None:
    def read_types(name: str) -> list[tuple[str, bool]]:
        return [
            (row["checkpointType"].removeprefix("CHECKPOINT_TYPE_"), row["promotable"])
            for row in told[name]["rows"]
        ]

    lora = ("INFERENCE_LORA", True)
    assert read_types("lora") == [lora, ("TRAINING_LORA", False), lora]
    assert read_types("full") == [
        ("INFERENCE_BASE", True),
        ("TRAINING", False),
        ("INFERENCE_ARC_V2", False),
    ]
    assert told["full"]["model"]["kind"] == "HF_BASE_MODEL"
    promoted = told["lora"]["model"]
    assert (promoted["kind"], promoted["peftDetails"]["r"]) == ("HF_PEFT_ADDON", 8)
    assert "q_proj" in promoted["peftDetails"]["targetModules"]


def test_another_program_takes_the_trainer_over_and_begins_with_the_promoted_model(
    told: dict[str, Any],
) -> None:
    again = told["lora"]["again"]
    assert again["job_id"] == told["lora"]["job_id"]
    assert again["needs_sync"] is False  # the deployment is attached to that trainer already
    for found in (again["begun"], again["resumed"]):
        assert found == pytest.approx(told["lora"]["first"]["trained"], abs=1e-5)
    assert again["source"].startswith("cross_job://")


def test_closing_leaves_the_deployment_asleep_and_the_jobs_deleted(
    told: dict[str, Any], environment: dict[str, str], api: httpx.Client
) -> None:
    headers = {"X-Api-Key": environment["FIREWORKS_API_KEY"]}
    account = api.get("/v1/accounts", headers=headers).json()["accounts"][0]["name"]
    deployment = api.get(
        f"/v1/{account}/deployments/{told['full']['deployment_id']}", headers=headers
    ).json()
    assert (deployment["state"], deployment["desiredReplicaCount"]) == ("READY", 0)
    jobs = [told["full"]["job_id"], told["full"]["reference_job_id"], told["research"]["job_id"]]
    for job_id in jobs:
        job = api.get(f"/v1/{account}/rlorTrainerJobs/{job_id}", headers=headers).json()
        assert job["state"] == "JOB_STATE_DELETED"


def test_a_research_loop_samples_from_exactly_the_snapshot_that_it_loaded(
    told: dict[str, Any],
) -> None:
    report = told["research"]
    for each in report["rounds"]:
        assert each["current"] == each["snapshot"]
        assert each["is_echoed"]
        assert each["served"] == pytest.approx(each["trained"], abs=ROUNDED)
    assert report["types"] == [
        ["CHECKPOINT_TYPE_INFERENCE_BASE", True],
        ["CHECKPOINT_TYPE_INFERENCE_ARC_V2", False],
    ]
    assert report["rounds"][1]["loss"] < report["rounds"][0]["loss"]
    first = report["rounds"][0]
    assert report["back"] == first["snapshot"]
    prompt = len(report["back_served"])
    assert report["back_served"] == pytest.approx(first["served"][:prompt], abs=1e-4)


def test_its_completions_carry_tokens_log_probabilities_and_the_servers_times(
    told: dict[str, Any],
) -> None:
    report = told["research"]
    for each in report["before"]:
        assert len(each["full_tokens"]) == each["prompt_len"] + each["completion_len"]
        assert len(each["inference_logprobs"]) == each["completion_len"]
        assert each["sampling_logprobs"] == pytest.approx(each["inference_logprobs"], abs=1e-5)
        assert each["finish_reason"] in ("stop", "length")
    (metrics,) = report["metrics"]
    assert metrics["prefill_queue_duration"] is not None
    assert report["too_long"] == []  # its prompt is as long as it may be: nothing is asked


def test_a_sleeping_deployment_wakes_and_an_unknown_snapshot_is_refused(
    told: dict[str, Any],
) -> None:
    assert told["research"]["woken"] in ("stop", "length")
    assert told["research"]["refused"] == 404


def test_several_adapters_of_one_trainer_are_served_in_turn(told: dict[str, Any]) -> None:
    rounds = told["several"]["rounds"]
    assert len({each["version"] for each in rounds}) == 2
    for each in rounds:
        assert each["served"] == pytest.approx(each["trained"], abs=ADAPTER)
        assert each["attempts"] == 1
    assert rounds[0]["served"] != pytest.approx(rounds[1]["served"], abs=1e-2)
