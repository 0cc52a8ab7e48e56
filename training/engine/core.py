"""The engine: one resident base model, many runs, and the verbs that a worker calls.

Shapes: T tokens of a packed row, H hidden size, P projected positions.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from training.architectures import find_context, read_architecture
from training.encryption import encrypt_files, read_recipients
from training.engine import checkpoint
from training.engine.adapters import Adapter, Adapters
from training.engine.attention import ATTENTION
from training.engine.cycle import Cycle, Outcome, Pack
from training.engine.families import check_agreement
from training.engine.optim import (
    STATES,
    OptimizerState,
    check_params,
    name_moments,
    name_optimizer,
    update_adapter,
)
from training.engine.passes import Tally, run_pass
from training.engine.probes import choose_probe_tokens, make_probe
from training.engine.routes import check_routes
from training.errors import InvalidInput
from training.fairness import Shares
from training.requests import check_request
from training.types import (
    ForwardBackward,
    LoraSpec,
    Optimizer,
    OptimizerParams,
    OptimStepOutput,
    Probe,
    SavedWeights,
)

T = TypeVar("T")
TOKEN_BUDGET = 4096  # tokens of one pass: what bounds the memory of its activations


class Engine:
    """Not for several threads: one worker owns it and calls one verb at a time."""

    def __init__(
        self, model: PreTrainedModel, *, path: Path, base_digest: str, token_budget: int
    ) -> None:
        self.model = model
        self.path = path
        self.base_digest = base_digest
        self.token_budget = token_budget
        self.num_parameters = model.num_parameters()
        self.vocab_size: int = model.config.vocab_size
        self.context: int = find_context(model.config.to_dict())
        self.flops = 0.0  # of all passes so far
        self.adapters = Adapters(model)
        self.optimizers: dict[str, OptimizerState] = {}

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        token_budget: int = TOKEN_BUDGET,
    ) -> "Engine":
        model = open_model(path, dtype, device)
        engine = cls(
            model,
            path=path,
            base_digest=checkpoint.digest_model(path),
            token_budget=token_budget,
        )
        check_agreement(model, engine.adapters)
        return engine

    @property
    def runs(self) -> tuple[str, ...]:
        return tuple(self.adapters.by_run)

    def create_adapter(self, run: str, spec: LoraSpec, kind: Optimizer = "adamw") -> None:
        """Fresh weights, no gradients, no moments; what the run had before is gone."""
        adapter = self.adapters.add(run, spec)
        self.optimizers[run] = STATES[kind].fresh(adapter.values)

    def drop(self, run: str) -> None:
        self.adapters.drop(run)
        self.optimizers.pop(run, None)

    def has_gradients(self, run: str) -> bool:
        return self._adapter(run).has_gradients

    def drop_gradients(self, run: str) -> None:
        """The next step counts only what comes from now on."""
        self._adapter(run).drop_gradients()

    def _adapter(self, run: str) -> Adapter:
        if run not in self.adapters.by_run:
            raise InvalidInput(f"run {run!r} has no weights here: create or load them first")
        return self.adapters.by_run[run]

    def forward_backward(self, requests: Mapping[str, ForwardBackward]) -> dict[str, Outcome]:
        """One request a run, all in the same passes. Gradients are summed until `optim_step`.

        A request that cannot be computed is answered with its InvalidInput; the others are done.
        """
        shares, outcomes = Shares(), dict[str, Outcome]()
        cycle = Cycle(self, shares)
        for run, request in requests.items():
            try:
                cycle.add(run, request)
            except InvalidInput as error:
                outcomes[run] = error
            else:
                shares.join(run, group=run)
        return outcomes | cycle.finish()

    def check(self, run: str, request: ForwardBackward) -> None:
        """InvalidInput where it cannot be computed."""
        self._adapter(run)
        check_request(request, self.vocab_size, self.context)
        check_routes(request, self.adapters.routing)

    def run_pack(self, pack: Pack, tallies: Mapping[str, Tally]) -> None:
        """One pass: adds to the gradients of its runs, and to their tallies."""
        with torch.set_grad_enabled(not pack.forward_only):
            act = partial(run_pass, self.model, self.adapters, pack.items, tallies)
            loss, num_tokens = self.see_whole(act)
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
        # Weights are frozen: the backward is as large as the forward, 2 a weight and token.
        self.flops += (2 if pack.forward_only else 4) * self.num_parameters * num_tokens

    def see_whole(self, act: Callable[[], T]) -> T:
        """Where weights are, as whole as a pass needs them."""
        return act()

    def optim_step(self, run: str, params: OptimizerParams) -> OptimStepOutput:
        """Uses up the gradients, also those that are refused because they are not finite.

        Without any it is a step on zeros: the moments fade, and still move the weights.
        """
        adapter = self._adapter(run)
        check_params(params)
        try:
            with torch.no_grad():
                metrics = update_adapter(adapter, self.optimizers[run], params)
        finally:
            adapter.drop_gradients()
        return OptimStepOutput(metrics=metrics)

    def save_weights(self, run: str, folder: Path, *, optimizer: bool) -> SavedWeights:
        adapter, state = self._adapter(run), self.optimizers[run]
        contents = checkpoint.Contents(
            adapter=adapter.tensors,
            optimizer=name_moments(adapter, state) if optimizer else None,
            spec=adapter.spec,
            step=state.num_steps,
            kind=name_optimizer(state),
        )
        probe = self.probe(run)
        manifest = checkpoint.write_folder(
            folder,
            contents,
            base=self.path,
            base_digest=self.base_digest,
            probe=probe,
            modules=self.adapters.name_modules(run),
        )
        return SavedWeights(
            digest=manifest.digest,
            size_bytes=checkpoint.count_bytes(folder),
            has_optimizer=optimizer,
            probe=probe,
        )

    def export_weights(
        self,
        run: str,
        folder: Path,
        *,
        base_name: str,
        card: str,
        recipients: Sequence[str] = (),
    ) -> SavedWeights:
        """Weights to leave this server: PEFT's files and a README, encrypted where keys are given.

        There is no manifest, and nothing here loads such a folder again.
        """
        adapter = self._adapter(run)
        keys = read_recipients(recipients) if recipients else []
        config = checkpoint.describe_adapter(
            adapter.spec, self.adapters.name_modules(run), base_name
        )
        with checkpoint.drafting(folder) as draft:
            checkpoint.write_adapter(draft, adapter.tensors, config)
            (draft / "README.md").write_text(card)
            if keys:
                encrypt_files(draft, keys)
        return SavedWeights(
            digest=checkpoint.digest_tensors(adapter.tensors),
            size_bytes=checkpoint.count_bytes(folder),
            has_optimizer=False,
            probe=self.probe(run),
        )

    def shares_trained_head(self, run: str) -> bool:
        """Whether the run trains a head whose frozen weights are the input embedding's too."""
        embedding = self.model.get_input_embeddings().weight
        shares = embedding is self.adapters.head.weight
        return shares and self._adapter(run).spec.train_unembed

    def load_weights(
        self, run: str, folder: Path, *, optimizer: bool, kind: Optimizer = "adamw"
    ) -> None:
        """The folder's weights and optimizer, or a fresh one of a kind; gradients are dropped."""
        contents = checkpoint.read_folder(folder, base_digest=self.base_digest, optimizer=optimizer)
        self.create_adapter(run, contents.spec, contents.kind if optimizer else kind)
        adapter, state = self.adapters.by_run[run], self.optimizers[run]
        if contents.adapter.keys() != adapter.tensors.keys():
            self.drop(run)
            raise InvalidInput(f"{folder.name} holds other layers than this model has")
        _copy_tensors(adapter.tensors, contents.adapter)
        if contents.optimizer is not None:
            _copy_tensors(name_moments(adapter, state), contents.optimizer)
            state.num_steps = contents.step

    def probe(self, run: str) -> Probe:
        """What the trainer makes of fixed tokens: a server of the same weights must agree."""
        tokens = choose_probe_tokens(self.vocab_size, self.context)
        output = self.forward_backward({run: make_probe(tokens)})[run]
        if isinstance(output, InvalidInput):
            raise output
        return Probe(tokens=tokens, logprobs=tuple(float(value) for value in output.logprobs[0]))


def open_model(path: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Frozen, with our attention."""
    read_architecture(path)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation=ATTENTION, local_files_only=True
    )
    model.train(False).requires_grad_(False).to(device)
    return model


def _copy_tensors(targets: checkpoint.Tensors, sources: checkpoint.Tensors) -> None:
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(sources[name])
