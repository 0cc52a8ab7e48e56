"""Runs inside vLLM's workers: whole checkpoints in place, and cures for faults of its CPU build.

vLLM imports it by name, in its own environment: it knows nothing of Hone, and Hone does not import
it. Hone speaks to it over vLLM's HTTP: `prepare_weights` and `read_weights` through
/collective_rpc, the exchange itself through /update_weights.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hone_vllm_lora
import hone_vllm_sampling
import torch
from safetensors import SafetensorError, safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.logger import init_logger
from vllm.lora.worker_manager import WorkerLoRAManager
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.platforms import current_platform

logger = init_logger("vllm.hone")  # below "vllm", where its handlers are

BACKEND = "checkpoint"
INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PREFIX = "base_model.model."

Shapes = Mapping[str, tuple[int, ...]]

base_shapes: dict[str, tuple[int, ...]] = {}  # of the weights of the model that is served


class RefusedError(ValueError):
    """The model has not been touched; the text says what is wrong with the folder."""


@dataclass
class NoInit(WeightTransferInitInfo):
    """There is nothing to arrange before: weights come from a folder."""


@dataclass
class Update(WeightTransferUpdateInfo):
    """A folder of a whole model, and the digest that its weights have to have."""

    path: str
    digest: str


@dataclass
class State:
    """What the model holds, and how far the next weights are."""

    path: str
    digest: str = ""  # "": those that the server was started with
    prepared: str = ""  # the digest of what was looked through and may be loaded
    is_preparing: bool = False
    error: str = ""  # why the last ones were not taken


class CheckpointEngine(WeightTransferEngine):  # type: ignore[type-arg, unused-ignore]
    """Reads safetensors from a folder, and touches nothing before it has looked through them."""

    init_info_cls = NoInit
    update_info_cls = Update

    def __init__(self, config: Any, vllm_config: Any, device: torch.device, model: Any) -> None:
        super().__init__(config, vllm_config, device, model)
        self.state = State(path=str(vllm_config.model_config.model))
        self.shapes = base_shapes
        self.shapes.update(read_shapes(list_files(Path(self.state.path))))
        self.thread: threading.Thread | None = None

    def init_transfer_engine(self, init_info: NoInit) -> None:
        pass

    def start_weight_update(self) -> None:
        pass

    def finish_weight_update(self) -> None:
        pass

    def shutdown(self) -> None:
        pass

    def prepare(self, path: str, digest: str) -> None:
        """Look through the folder beside the requests that run."""
        self.state.prepared, self.state.error, self.state.is_preparing = "", "", True
        self.thread = threading.Thread(target=self._look_through, args=(path, digest), daemon=True)
        self.thread.start()

    def _look_through(self, path: str, digest: str) -> None:
        try:
            check_folder(Path(path), digest, self.shapes)
            self.state.prepared = digest
        except RefusedError as error:
            self.state.error = str(error)
        finally:
            self.state.is_preparing = False

    def receive_weights(self, update_info: Update) -> None:
        """After a failure the weights of before are there again, or this process is not."""
        folder, digest = Path(update_info.path), update_info.digest
        if self.thread is not None:
            self.thread.join()
        if self.state.prepared != digest:
            check_folder(folder, digest, self.shapes)
        self.state.prepared = ""
        with ExitStack() as after_failure:
            after_failure.callback(self._go_back, folder)
            self._load(folder)
            after_failure.pop_all()
        self.state.path, self.state.digest = str(folder), digest

    def _go_back(self, folder: Path) -> None:
        self.state.error = f"{folder.name} could not be loaded: the log of vLLM says why"
        logger.error("%s; the weights of before are loaded again", self.state.error)
        with ExitStack() as after_failure:
            after_failure.callback(os._exit, 1)
            self._load(Path(self.state.path))
            after_failure.pop_all()

    def _load(self, folder: Path) -> None:
        initialize_layerwise_reload(self.model)
        try:
            loaded = self.model.load_weights(iterate_tensors(folder, self.shapes))
        finally:
            finalize_layerwise_reload(self.model, self.model_config)
        check_loaded(self.model, loaded)
        if current_platform.is_cpu():
            repack_heads(self.model)


class HoneWorker:
    """Mixed into vLLM's worker: calls of /collective_rpc."""

    weight_transfer_engine: CheckpointEngine

    def prepare_weights(self, path: str, digest: str) -> None:
        """Returns at once; `read_weights` says when it is done."""
        self.weight_transfer_engine.prepare(path, digest)

    def read_weights(self) -> dict[str, Any]:
        """What was last loaded."""
        return asdict(self.weight_transfer_engine.state)


def list_files(folder: Path) -> list[Path]:
    """Those that loaders take: the ones of the index, or the one file."""
    try:
        if (folder / INDEX_FILE).is_file():
            index = json.loads((folder / INDEX_FILE).read_text())
            return [folder / name for name in sorted(set(index["weight_map"].values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RefusedError(f"{folder.name} is damaged: {INDEX_FILE} cannot be read") from error
    return [folder / WEIGHTS_FILE]


def check_folder(folder: Path, digest: str, shapes: Shapes) -> None:
    """The very weights that were asked for, and of the model that is served here."""
    found = digest_files(list_files(folder))
    if found != digest:
        raise RefusedError(
            f"{folder.name} has weights with the digest {found[:12]}, and {digest[:12]} was asked"
            " for: its files were changed, or are not all there"
        )
    theirs = read_shapes(list_files(folder))
    if missing := sorted(shapes.keys() - theirs.keys()):
        raise RefusedError(f"{folder.name} is not of this model: it has no {missing[0]}")
    for name, shape in theirs.items():
        check_shape(folder, name, shape, shapes)


def check_shape(folder: Path, name: str, shape: tuple[int, ...], shapes: Shapes) -> None:
    if name not in shapes:
        raise RefusedError(f"{folder.name} is not of this model, which has no {name}")
    if shape != shapes[name]:
        raise RefusedError(
            f"{folder.name} is not of this model: {name} has the shape {list(shape)}, and the"
            f" model's has {list(shapes[name])}"
        )


def digest_files(files: list[Path]) -> str:
    """As Hone writes it down: of each file's name and sha256."""
    lines = []
    for file in files:
        try:
            with file.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise RefusedError(
                f"{file.parent.name} is damaged: {file.name} cannot be read: {error.strerror}"
            ) from error
        lines.append(f"{file.name} {found}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """Opening a file also compares its length with what its header says."""
    shapes = {}
    for file in files:
        where = f"{file.parent.name} is damaged: {file.name}"
        if not file.is_file():
            raise RefusedError(f"{where} is missing")
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    shapes[name] = tuple(tensors.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise RefusedError(f"{where} cannot be read: {error}") from error
    return shapes


def iterate_tensors(folder: Path, shapes: Shapes) -> Iterator[tuple[str, torch.Tensor]]:
    """All of them, or an error: of a layer that is loaded in part nobody would notice."""
    left = set(shapes)
    for file in list_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                left.discard(name)
                yield name, tensors.get_tensor(name)
    if left:
        raise RefusedError(f"{folder.name} has lost {min(left)}")


def check_adapter(folder: Path, config: Any) -> None:
    """vLLM would pass over what it has no place for, and say other things in its own words."""
    rank = read_rank(folder)
    if rank > config.max_lora_rank:
        raise RefusedError(
            f"{folder.name} has rank {rank}: this server was started for ranks up to"
            f" {config.max_lora_rank}"
        )
    for name, shape in read_shapes([folder / ADAPTER_FILE]).items():
        module, _, part = name.removeprefix(PREFIX).partition(".lora_")
        kind = "experts" if "experts" in module else module.rpartition(".")[2]
        if kind not in (config.target_modules or (kind,)):
            raise RefusedError(
                f"{folder.name} changes {module}: this server was started for adapters of"
                f" {', '.join(config.target_modules)}"
            )
        if kind == "experts":  # several formats name these
            continue
        whole = find_base_shape(module)
        theirs = (shape[0], whole[1]) if part.startswith("A") else (whole[0], shape[1])
        if shape != theirs:
            raise RefusedError(
                f"{folder.name} is an adapter of another base model: it has {module} with the"
                f" shape {list(shape)}"
            )


def find_base_shape(module: str) -> tuple[int, ...]:
    """(0, 0): the base has no such layer. A tied output head has the embedding's."""
    tied = "model.embed_tokens" if module == "lm_head" else module
    return base_shapes.get(f"{module}.weight") or base_shapes.get(f"{tied}.weight", (0, 0))


def read_rank(folder: Path) -> int:
    where = f"{folder.name} is damaged: {CONFIG_FILE}"
    try:
        return int(json.loads((folder / CONFIG_FILE).read_text())["r"])
    except FileNotFoundError as error:
        raise RefusedError(f"{where} is missing") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"{where} cannot be read") from error


def check_loaded(model: torch.nn.Module, loaded: set[str] | None) -> None:
    """Every weight of the model was among those that were read. LoRA's wrappers rename them."""
    if loaded is None:
        return
    known = {name.replace(".base_layer.", ".") for name in loaded}
    wanted = {name.replace(".base_layer.", ".") for name, _ in model.named_parameters()}
    if missing := sorted(wanted - known):
        raise RuntimeError(f"nothing was loaded for {missing[0]} and {len(missing) - 1} others")


def repack_heads(model: torch.nn.Module) -> None:
    """An output head that shares the embedding's weight keeps a packed copy of the old one."""
    for module in model.modules():
        is_packed = isinstance(module, VocabParallelEmbedding) and hasattr(module, "cpu_linear")
        if is_packed and module.weight.numel():  # type: ignore[operator]
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


def check_before(load: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: WorkerLoRAManager, lora_request: Any) -> Any:
        check_adapter(Path(lora_request.lora_path), self.lora_config)
        return load(self, lora_request)

    return run


WorkerLoRAManager._load_adapter = check_before(WorkerLoRAManager._load_adapter)
WeightTransferEngineFactory.register_engine(BACKEND, CheckpointEngine)
hone_vllm_lora.install()
hone_vllm_sampling.install()
