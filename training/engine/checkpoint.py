"""Checkpoint folders: a PEFT adapter, the optimizer's moments, and a manifest that comes last."""

import glob
import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from training.engine.projection import with_head_alone, without_head
from training.errors import InvalidInput
from training.manifest import MANIFEST_FILE, TRACE_LENGTH, Manifest, read_manifest
from training.types import LoraSpec, Optimizer, Probe

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
OPTIMIZER_FILE = "optimizer.safetensors"
HEAD_FILE = "projection_head.safetensors"  # of a run that has one

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What is written into a folder, or was read from one and agrees with its manifest."""

    adapter: Tensors
    optimizer: Tensors | None
    spec: LoraSpec
    step: int
    kind: Optimizer = "adamw"


def digest_tensors(tensors: Tensors) -> str:
    return trace_tensors(tensors)[0]


def trace_tensors(tensors: Tensors) -> tuple[str, dict[str, str]]:
    """sha256 over names, types, shapes and bytes, in the order of the names; and how it begins
    after each."""
    digest, trace = hashlib.sha256(), {}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
        trace[name] = digest.copy().hexdigest()[:TRACE_LENGTH]
    return digest.hexdigest(), trace


def write_folder(
    folder: Path,
    contents: Contents,
    *,
    base: Path,
    base_digest: str,
    probe: Probe,
    modules: list[str],
) -> Manifest:
    """The folder appears complete, by a rename, or not at all; one that was there is replaced."""
    digest, trace = trace_tensors(without_head(contents.adapter))
    head = with_head_alone(contents.adapter)
    manifest = Manifest(
        digest=digest,
        optimizer_digest=digest_tensors(contents.optimizer) if contents.optimizer else None,
        base_digest=base_digest,
        spec=contents.spec,
        step=contents.step,
        optimizer=contents.kind,
        probe=probe,
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
        tensors=trace,
        files={HEAD_FILE: digest_tensors(head)} if head else {},
    )
    with drafting(folder) as draft:
        config = describe_adapter(contents.spec, modules, str(base))
        write_adapter(draft, without_head(contents.adapter), config)
        if head:
            _write_tensors(head, draft / HEAD_FILE)
        if contents.optimizer is not None:
            _write_tensors(contents.optimizer, draft / OPTIMIZER_FILE)
        write_json(draft / MANIFEST_FILE, asdict(manifest))
    return manifest


@contextmanager
def drafting(folder: Path) -> Iterator[Path]:
    """A place to write in. What an earlier attempt left, when it was killed in the middle, goes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left_over in folder.parent.glob(f".{glob.escape(folder.name)}.*"):
        shutil.rmtree(left_over, ignore_errors=True)
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    draft.mkdir()
    try:
        yield draft
        _replace_folder(folder, draft)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_adapter(folder: Path, tensors: Tensors, config: Mapping[str, Any]) -> None:
    """What any loader of PEFT's format reads."""
    _write_tensors(tensors, folder / ADAPTER_FILE)
    write_json(folder / CONFIG_FILE, config)


def _write_tensors(tensors: Tensors, file: Path) -> None:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, file, metadata={"format": "pt"})
    file.chmod(0o644)  # a server under another user reads them too


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _replace_folder(folder: Path, draft: Path) -> None:
    old = draft.with_name(f"{draft.name}.old")
    if folder.exists():
        folder.rename(old)
    draft.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def describe_adapter(spec: LoraSpec, modules: list[str], base: str) -> dict[str, Any]:
    """adapter_config.json as PEFT and vLLM read it. `base`: a folder, or the name of a model."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
    }


def read_folder(folder: Path, *, base_digest: str, optimizer: bool) -> Contents:
    """Everything is compared with the manifest before anything is returned."""
    manifest = read_manifest(folder)
    if manifest.type != "adapter":
        raise InvalidInput(
            f"{folder.name} holds all weights of a model: only a full-parameter run can load it"
        )
    if manifest.base_digest != base_digest:
        raise InvalidInput(f"{folder.name} was trained on another base model than this one")
    if optimizer and manifest.optimizer_digest is None:
        raise InvalidInput(
            f"{folder.name} holds no optimizer state: load it without, or take a training "
            "checkpoint"
        )
    moments = None
    if optimizer and manifest.optimizer_digest is not None:
        moments = _read_tensors(folder / OPTIMIZER_FILE, manifest.optimizer_digest)
    adapter = dict(_read_tensors(folder / ADAPTER_FILE, manifest.digest))
    if HEAD_FILE in manifest.files:
        adapter |= _read_tensors(folder / HEAD_FILE, manifest.files[HEAD_FILE])
    return Contents(
        adapter=adapter,
        optimizer=moments,
        spec=manifest.spec,
        step=manifest.step,
        kind=manifest.optimizer,
    )


def _read_tensors(file: Path, digest: str) -> Tensors:
    where = f"{file.parent.name} is damaged: {file.name}"
    try:
        tensors = load_file(file)
    except FileNotFoundError as error:
        raise InvalidInput(f"{where} is missing") from error
    except (SafetensorError, OSError) as error:
        raise InvalidInput(f"{where} cannot be read") from error
    if digest_tensors(tensors) != digest:
        raise InvalidInput(f"{where} does not have the digest that {MANIFEST_FILE} says")
    return tensors


def copy_tensors(targets: Tensors, sources: Tensors) -> None:
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(sources[name])


def count_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
