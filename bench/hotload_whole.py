"""Hot-load program of all weights: the real Fireworks SDK trains, saves a base and then deltas, and
asks its deployment for their first token. It looks more often than the SDK's own five seconds.
"""

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import httpx
from fireworks.training.sdk import (
    AdamParams,
    Datum,
    DeploymentConfig,
    DeploymentManager,
    FiretitanServiceClient,
    ModelInput,
    TrainerJobConfig,
    TrainerJobManager,
)

from bench.sft_rows import SftRow, read_batches

NAME = "bench-whole"
LOOK_SECONDS = 0.01
ADAM = AdamParams(learning_rate=1e-5)


def to_datum(row: SftRow) -> Datum:
    tokens = list(row.tokens)
    weights = [float(learned) for learned in row.learned[1:]]
    inputs = {"target_tokens": tokens[1:], "weights": weights}
    return Datum(model_input=ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


class Loop:
    """One trainer of all weights, and the deployment that serves what it saves."""

    def __init__(self, where: dict[str, str], model: str) -> None:
        key = where["api_key"].replace("tml-", "fw_", 1)  # as this SDK spells keys
        reach = {"api_key": key, "base_url": where["url"]}
        self.model = f"accounts/fireworks/models/{model}"
        job = TrainerJobManager(**reach).create_and_wait(
            TrainerJobConfig(base_model=self.model, lora_rank=0, display_name=NAME)
        )
        self.deployments = DeploymentManager(**reach)
        config = DeploymentConfig(
            deployment_id=NAME,
            base_model=self.model,
            min_replica_count=1,
            hot_load_trainer_job=job.job_name,
        )
        self.deployments.create_or_get(config)
        self.deployed = self.deployments.wait_for_ready(NAME, poll_interval_s=1).inference_model
        service = FiretitanServiceClient(base_url=job.base_url, api_key=key)
        self.client = service.create_training_client(base_model=self.model, lora_rank=0)
        headers = {"authorization": f"Bearer {key}"}
        self.http = httpx.Client(base_url=where["url"], headers=headers, timeout=600)

    def step(self, data: list[Datum]) -> None:
        gradient = self.client.forward_backward(data, "cross_entropy")
        update = self.client.optim_step(ADAM)
        gradient.result()
        update.result()

    def serve_new(self, name: str, kind: str) -> float:
        """Milliseconds from the end of a step to the first token of its weights."""
        began = time.perf_counter()
        saved = self.client.save_weights_for_sampler_ext(name, checkpoint_type=kind)
        self.deployments.hotload(NAME, self.model, saved.snapshot_name)
        while not self.is_served(saved.snapshot_name):
            time.sleep(LOOK_SECONDS)
        body = {"model": self.deployed, "prompt": list(range(10, 26)), "max_tokens": 1}
        self.http.post("/inference/v1/completions", json=body).raise_for_status()
        return 1000 * (time.perf_counter() - began)

    def is_served(self, identity: str) -> bool:
        status: Any = self.deployments.hotload_check_status(NAME, self.model)
        replica = status["replicas"][0] if status["replicas"] else {}
        if replica.get("loading_state", {}).get("stage") == "error":
            raise SystemExit(f"{identity} was not served: {replica}")
        is_current = replica.get("current_snapshot_identity") == identity
        return bool(is_current and replica.get("readiness"))


def main(connection: str, model: str, rows: str, rounds: str) -> None:
    loop = Loop(json.loads(Path(connection).read_text()), model)
    data = [to_datum(row) for row in read_batches(Path(rows))[0][:1]]
    loop.step(data)
    loop.serve_new("first", "base")
    totals = []
    for number in range(int(rounds)):
        loop.step(data)
        totals.append(loop.serve_new(f"delta-{number}", "delta"))
    print(json.dumps({"totals": totals}))


warnings.simplefilter("ignore")
main(*sys.argv[1:])
