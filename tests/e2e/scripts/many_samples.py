"""Hundreds of samples by one poller, some abandoned; copies of the client in other processes."""

import pickle
import subprocess
import sys
from concurrent.futures import TimeoutError as TooLate
from typing import Any

from program import MODEL, connect, report, types

COPY = """
import pickle, sys
from program import types
import tinker
if __name__ == "__main__":
    client = pickle.load(sys.stdin.buffer)
    params = types.SamplingParams(max_tokens=4, seed=3)
    prompt = types.ModelInput.from_ints([5, 6, 7])
    futures = [client.sample(prompt, sampling_params=params, num_samples=1) for _ in range(20)]
    ids = [future.result().sequences[0].sequence_id for future in futures]
    print(ids[0])
    print(len(set(ids)))
"""

service = connect()
client = service.create_sampling_client(base_model=MODEL)
params = types.SamplingParams(max_tokens=4, seed=3)


def sample(index: int, **options: Any) -> Any:
    prompt = types.ModelInput.from_ints([5, 6, 7 + index % 50])
    return client.sample(prompt, sampling_params=params, num_samples=1, **options)


futures = [sample(index) for index in range(300)]
answers = [future.result() for future in futures]
again = [sample(index).result().sequences[0].tokens for index in range(3)]

long = types.SamplingParams(max_tokens=200, seed=3, stop=[])
prompt = types.ModelInput.from_ints([5, 6, 7])
abandoned = [client.sample(prompt, sampling_params=long, num_samples=8) for _ in range(30)]
abandoned[0].result()
num_late = 0
for future in reversed(abandoned):
    try:
        future.result(timeout=0.001)
    except TooLate:
        num_late += 1
        future.future().cancel()

copies = [
    subprocess.run(
        [sys.executable, "-c", COPY],
        input=pickle.dumps(client),
        capture_output=True,
        check=True,
        cwd=__file__.rpartition("/")[0],
    ).stdout.decode()
    for _ in range(2)
]
report(
    num_answers=len(answers),
    num_ids=len({each.sequences[0].sequence_id for each in answers}),
    same=[list(each) for each in again] == [list(each.sequences[0].tokens) for each in answers[:3]],
    num_late=num_late,
    copies=[copy.split() for copy in copies],
    session=answers[0].sequences[0].sequence_id,
)
service.close("success").result()
