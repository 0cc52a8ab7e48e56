"""What shows that a server holds a checkpoint: its files' digests, and its answer to the probe."""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from training.errors import InvalidInput
from training.manifest import MANIFEST_FILE, TRACE_LENGTH, Manifest, read_manifest
from training.model_files import digest_model
from training.types import SampleRequest, SamplingParams
from webapp.checkpoints.models import Checkpoint
from workers.vllm import SamplingServer

ADAPTER_FILE = "adapter_model.safetensors"
HASHED_BYTES = 1 << 20
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def check_adapter(folder: Path, base: Path) -> str:
    """The digest of an adapter that is complete, as it was written, and of this base model."""
    manifest = read_manifest(folder)
    if manifest.type != "adapter":
        raise InvalidInput(f"{folder.name} holds all weights of a model, and no adapter")
    if manifest.base_digest != digest_base(base):
        raise InvalidInput(
            f"{folder.name} was trained on another base model than the one in {base.name}: its"
            " weights mean nothing here"
        )
    digest, trace = trace_adapter(folder / ADAPTER_FILE)
    if digest != manifest.digest:
        raise InvalidInput(
            f"{folder.name} is damaged: {name_change(manifest, trace)} of {ADAPTER_FILE} is not as"
            f" {MANIFEST_FILE} says: the digest is {digest[:12]}, and {manifest.digest[:12]} was"
            " written"
        )
    return digest


@lru_cache(maxsize=16)
def digest_base(base: Path) -> str:
    """As the trainer says it. A base model's files do not change while it is offered."""
    try:
        return digest_model(base)
    except OSError as error:
        raise InvalidInput(f"the base model in {base.name} cannot be read: {error}") from error


def name_change(manifest: Manifest, trace: Mapping[str, str]) -> str:
    """The first tensor that was changed; folders of before do not tell them apart."""
    if set(manifest.tensors) != set(trace):
        missing = sorted(manifest.tensors.keys() - trace.keys())
        return f"the tensor {missing[0]}, which is missing," if missing else "a tensor"
    changed = (name for name in sorted(trace) if trace[name] != manifest.tensors[name])
    return f"the tensor {next(changed, '')}"


def trace_adapter(file: Path) -> tuple[str, dict[str, str]]:
    """What training.engine.checkpoint.trace_tensors says of the file's tensors, without torch."""
    digest, trace = sha256(), {}
    try:
        with file.open("rb") as stream:
            start = 8 + int.from_bytes(stream.read(8), "little")
            header: Mapping[str, Any] = json.loads(stream.read(start - 8))
            for name in sorted(header.keys() - {"__metadata__"}):
                tensor = header[name]
                shape = tuple(tensor["shape"])
                digest.update(f"{name} torch.{DTYPES[tensor['dtype']]} {shape}\n".encode())
                begin, end = tensor["data_offsets"]
                stream.seek(start + begin)
                for left in range(end - begin, 0, -HASHED_BYTES):
                    digest.update(stream.read(min(left, HASHED_BYTES)))
                trace[name] = digest.copy().hexdigest()[:TRACE_LENGTH]
    except FileNotFoundError as error:
        raise InvalidInput(f"{file.parent.name} is damaged: {file.name} is missing") from error
    except (OSError, OverflowError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{file.parent.name} cannot be read: {error}") from error
    return digest.hexdigest(), trace


def check_digest(checkpoint: Checkpoint, found: str) -> None:
    if found != checkpoint.digest:
        raise InvalidInput(
            f"The files of {checkpoint.name} have the digest {found[:12]}, and "
            f"{checkpoint.digest[:12]} was saved: they were changed on disk."
        )


async def probe(server: SamplingServer, model: str, checkpoint: Checkpoint) -> list[float]:
    """The probe's log-probabilities through the path that answers everybody."""
    tokens = checkpoint.probe.get("tokens")
    if not tokens:
        raise InvalidInput(
            f"{checkpoint.name} was saved without a probe, so nothing can prove that it is "
            "what the server holds."
        )
    request = SampleRequest(
        prompt=tokens, params=SamplingParams(max_tokens=1, temperature=0.0), prompt_logprobs=True
    )
    output = await server.generate(model, request)
    found = list(output.prompt_logprobs or ())[1:]
    logprobs = [value for value in found if value is not None and math.isfinite(value)]
    if len(logprobs) != len(tokens) - 1:
        raise InvalidInput("The server gave no finite log-probabilities for the probe.")
    return logprobs
