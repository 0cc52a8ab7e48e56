"""Which runs an engine holds on its one model, and where their weights and gradients are."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from training.architectures import find_context
from training.engine.adapters import Adapter, Adapters, check_head
from training.engine.experts import count_idle
from training.engine.full import FullRun, check_free
from training.engine.gated import thin_out
from training.engine.optim import STATES, OptimizerState, Weights, check_kind
from training.engine.projection import without_head
from training.errors import InvalidInput
from training.memory import Room
from training.types import LoraSpec, Optimizer


class Tenancy:
    """A model, and its runs: adapters beside each other, or one run that trains all of it."""

    def __init__(
        self, model: PreTrainedModel, *, path: Path, base_digest: str, token_budget: int
    ) -> None:
        self.model = model
        self.path = path
        self.base_digest = base_digest
        self.token_budget = token_budget
        self.room: Room | None = None  # where it is known, what does not fit is refused
        self.vocab_size: int = model.config.vocab_size
        self.context: int = find_context(model.config.to_dict())
        self.flops = 0.0  # of all passes so far
        self.adapters = Adapters(model)
        self.num_parameters = model.num_parameters()
        self.num_active = self.num_parameters - count_idle(model, self.adapters.routing)
        self.full: FullRun | None = None  # it has the model for itself
        self.is_spent = False  # a full-parameter run has left: the model is no base any more
        thin_out(model)
        self.optimizers: dict[str, OptimizerState] = {}

    @property
    def runs(self) -> tuple[str, ...]:
        return (self.full.name,) if self.full else tuple(self.adapters.by_run)

    def create_adapter(self, run: str, spec: LoraSpec, kind: Optimizer = "adamw") -> None:
        """Fresh weights, no gradients, no moments; what the run had before is gone.

        A spec of rank 0 takes the whole model, until its run is dropped: the engine ends with it.
        """
        check_kind(spec, kind)
        check_head(spec)
        if self.room is not None:
            self.room.check_run(spec)
        if spec.is_full:
            full = self._take_model(run, spec)
            full.files.read(full.list_targets(full.weights.values))
            if full.projection is not None:
                full.projection.initialise(spec.seed)
            full.training.refresh()
            self.optimizers[run] = STATES[kind].fresh(full.weights.values)
        else:
            check_free(self.runs if self.full else (), is_spent=self.is_spent)
            adapter = self.adapters.add(run, spec)
            self.optimizers[run] = STATES[kind].fresh(adapter.values)

    def _take_model(self, run: str, spec: LoraSpec) -> FullRun:
        """The run's buffers, whatever is in them, without gradients."""
        others = [each for each in self.runs if each != run]
        check_free(others, is_spent=self.is_spent)
        self.adapters.drop(run)
        if self.full is None:
            self.full = self._make_full(run, spec)
        self.full.weights.spec = spec
        self.full.weights.drop_gradients()
        if self.full.projection is not None:
            self.adapters.projections[run] = self.full.projection
        return self.full

    def _make_full(self, run: str, spec: LoraSpec) -> FullRun:
        return FullRun(run, spec, self.model, self.adapters.head, self.path)

    def drop(self, run: str) -> None:
        self.adapters.drop(run)
        self.optimizers.pop(run, None)
        if self.full is not None and self.full.name == run:
            self.full, self.is_spent = None, True

    def has_gradients(self, run: str) -> bool:
        return self.find_weights(run).has_gradients

    def drop_gradients(self, run: str) -> None:
        """The next step counts only what comes from now on."""
        self.find_weights(run).drop_gradients()

    def keep_gradients(self, run: str) -> torch.Tensor:
        """As they are now, for `restore_gradients`."""
        return self.find_weights(run).gradients.clone()

    def restore_gradients(self, run: str, kept: torch.Tensor) -> None:
        self.find_weights(run).gradients.copy_(kept)

    def find_weights(self, run: str) -> Weights:
        if self.full is not None and self.full.name == run:
            return self.full.weights
        return self._adapter(run)

    def _adapter(self, run: str) -> Adapter:
        if run not in self.adapters.by_run:
            raise InvalidInput(f"run {run!r} has no weights here: create or load them first")
        return self.adapters.by_run[run]

    def count_adapter_bytes(self, run: str) -> int:
        """Of its weights alone; an optimizer keeps twice as much beside them."""
        tensors = self._adapter(run).tensors.values()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def joins_experts(self, run: str) -> bool:
        """Whether an export of the run has experts as Tinker has them, and not as PEFT has."""
        if self.full is not None and self.full.name == run:
            return False
        adapter = self._adapter(run)
        return adapter.join_experts().keys() != without_head(adapter.tensors).keys()

    def shares_trained_head(self, run: str) -> bool:
        """Whether head and input embedding are the same weights, and the run trains one of them."""
        embedding = self.model.get_input_embeddings().weight
        shares = embedding is self.adapters.head.weight
        spec = self.find_weights(run).spec
        return shares and not spec.is_full and (spec.train_unembed or spec.train_embed)
