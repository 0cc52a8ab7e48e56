"""The engine: one resident base model, many runs, and the verbs that a worker calls.

Shapes: T tokens of a packed row, H hidden size, P projected positions.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from training.encryption import encrypt_files, read_recipients
from training.engine import checkpoint, whole
from training.engine.cycle import Cycle, Outcome, Pack
from training.engine.families import check_agreement
from training.engine.full import FullRun
from training.engine.models import open_model
from training.engine.optim import (
    STATES,
    check_params,
    measure_norm,
    name_moments,
    name_optimizer,
    update,
)
from training.engine.passes import run_pass
from training.engine.peft_folder import read_weights
from training.engine.probes import choose_probe_tokens, make_probe
from training.engine.projection import without_head
from training.engine.recompute import recompute_layers
from training.engine.routes import check_routes
from training.engine.steps import Asked
from training.engine.tally import Tally
from training.engine.tenancy import Tenancy
from training.errors import InvalidInput
from training.fairness import Shares
from training.manifest import read_manifest
from training.model_files import digest_model
from training.requests import check_request
from training.types import (
    ForwardBackward,
    Optimizer,
    OptimizerParams,
    OptimStepOutput,
    Probe,
    SavedWeights,
    StepOptions,
)
from training.vectors import check_widths

T = TypeVar("T")
PLAIN = StepOptions()
TOKEN_BUDGET = 4096  # tokens of one pass: what bounds the memory of its activations


class Engine(Tenancy):
    """Not for several threads: one worker owns it and calls one verb at a time."""

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        token_budget: int = TOKEN_BUDGET,
        recompute: bool = False,
    ) -> "Engine":
        """A base model, or a folder of one that a full-parameter run has saved. `recompute`: less
        memory, as a decoder layer's activations are made twice."""
        model = open_model(path, dtype, device)
        engine = cls(
            model,
            path=path,
            base_digest=digest_model(path),
            token_budget=token_budget,
        )
        check_agreement(model, engine.adapters)
        if recompute:
            recompute_layers(model, engine.adapters)
        return engine

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
        spec = self.find_weights(run).spec
        check_request(request, self.vocab_size, self.context)
        if self.room is not None and not request.forward_only:
            self.room.check_data(spec, request.data)
        check_routes(request, self.adapters.routing)
        check_widths(request, self.adapters.head.weight.shape[1], spec.projection_head_dim)

    def run_pack(self, pack: Pack, tallies: Mapping[str, Tally]) -> None:
        """One pass: adds to the gradients of its runs, and to their tallies."""
        with torch.set_grad_enabled(not pack.forward_only):
            act = partial(run_pass, self.model, self.adapters, pack.items, tallies)
            loss, num_tokens = self.see_whole(act)
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
        # A weight and token costs 2 in the forward and 2 in the backward, which where weights are
        # trained has as much to do again for their gradients.
        with_backward = 6 if self.full else 4
        flops_a_weight = 2 if pack.forward_only else with_backward
        self.flops += flops_a_weight * self.num_active * num_tokens

    def see_whole(self, act: Callable[[], T]) -> T:
        """Where weights are, as whole as a pass needs them."""
        return act()

    def optim_step(
        self, run: str, params: OptimizerParams, options: StepOptions = PLAIN
    ) -> OptimStepOutput:
        """Uses up the gradients, also those that are refused because they are not finite.

        Without any it is a step on zeros: the moments fade, and still move the weights.
        """
        counts = self.find_weights(run).counts
        output = self.take_step(run, params, options, counts.find_divisor(options))
        return OptimStepOutput(metrics={**output.metrics, **counts.describe(options)})

    def take_step(
        self, run: str, params: OptimizerParams, options: StepOptions, divisor: int
    ) -> OptimStepOutput:
        weights = self.find_weights(run)
        check_params(params)
        asked = Asked(
            options=options,
            divisor=divisor,
            num_trained=self.num_parameters if self.full else weights.num_parameters,
            measure=self.measure_norm,
        )
        try:
            with torch.no_grad():
                metrics = update(weights, self.optimizers[run], params, asked)
        finally:
            weights.drop_gradients()
        if self.full is not None:
            self.full.training.refresh()
        return OptimStepOutput(metrics=metrics)

    def measure_norm(self, gradients: torch.Tensor) -> torch.Tensor:
        return measure_norm(gradients)

    def save_weights(
        self, run: str, folder: Path, *, optimizer: bool, previous: Path | None = None
    ) -> SavedWeights:
        """All weights of a model are written as the difference to the folder `previous`, if any."""
        if self.full is not None and self.full.name == run:
            return self._save_full(self.full, folder, optimizer=optimizer, previous=previous)
        adapter, state = self._adapter(run), self.optimizers[run]
        contents = checkpoint.Contents(
            adapter=adapter.tensors,
            optimizer=name_moments(adapter.view, state) if optimizer else None,
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

    def _save_full(
        self, full: FullRun, folder: Path, *, optimizer: bool, previous: Path | None
    ) -> SavedWeights:
        state = self.optimizers[full.name]
        probe = self._probe_stored(full)
        contents = whole.State(
            tensors=self._list_whole(full),
            moments=self._list_moments(full) if optimizer else None,
            spec=full.weights.spec,
            step=state.num_steps,
            kind=name_optimizer(state),
            base_digest=self.base_digest,
            probe=probe,
        )
        if previous is not None and not optimizer:
            manifest = whole.write_delta(folder, previous, full.files, contents)
        else:
            manifest = whole.write_base(folder, full.files, contents)
        return SavedWeights(
            digest=manifest.digest,
            size_bytes=checkpoint.count_bytes(folder),
            has_optimizer=optimizer,
            probe=probe,
            type=manifest.type,
            ratio=manifest.ratio,
        )

    def _probe_stored(self, full: FullRun) -> Probe:
        with full.as_stored():
            return self.probe(full.name)

    def _list_whole(self, full: FullRun) -> checkpoint.Tensors:
        return full.weights.tensors

    def _list_moments(self, full: FullRun) -> checkpoint.Tensors:
        return name_moments(full.weights.view, self.optimizers[full.name])

    def export_weights(
        self,
        run: str,
        folder: Path,
        *,
        base_name: str,
        card: str,
        recipients: Sequence[str] = (),
    ) -> SavedWeights:
        """Weights to leave this server: PEFT's files, or those of a whole model, and a README;
        encrypted where keys are given. There is no manifest: nothing loads them here as a run's.
        Of experts it is Tinker's form, for the tools that come with its client.
        """
        keys = read_recipients(recipients) if recipients else []
        with checkpoint.drafting(folder) as draft:
            digest = self._write_export(run, draft, base_name)
            (draft / "README.md").write_text(card)
            if keys:
                encrypt_files(draft, keys)
        return SavedWeights(
            digest=digest,
            size_bytes=checkpoint.count_bytes(folder),
            has_optimizer=False,
            probe=self.probe(run),
            type="base" if self.full else "adapter",
        )

    def _write_export(self, run: str, draft: Path, base_name: str) -> str:
        """Returns the digest of the weights."""
        if self.full is not None and self.full.name == run:
            return whole.write_model(draft, self.full.files, self._list_whole(self.full))
        adapter = self._adapter(run)
        config = checkpoint.describe_adapter(
            adapter.spec, self.adapters.name_modules(run), base_name
        )
        checkpoint.write_adapter(draft, adapter.join_experts(), config)
        return checkpoint.digest_tensors(without_head(adapter.tensors))

    def load_weights(
        self, run: str, folder: Path, *, optimizer: bool, kind: Optimizer = "adamw"
    ) -> None:
        """The folder's weights and optimizer, or a fresh one of a kind; gradients are dropped."""
        if read_manifest(folder).type != "adapter" and run not in self.adapters.by_run:
            self._load_full(run, folder, optimizer=optimizer)
            return
        if self.full is not None:
            raise InvalidInput(
                f"{folder.name} holds an adapter: a full-parameter run loads all weights of a model"
            )
        contents = checkpoint.read_folder(folder, base_digest=self.base_digest, optimizer=optimizer)
        self.create_adapter(run, contents.spec, contents.kind if optimizer else kind)
        adapter, state = self.adapters.by_run[run], self.optimizers[run]
        if contents.adapter.keys() != adapter.tensors.keys():
            self.drop(run)
            raise InvalidInput(f"{folder.name} holds other layers than this model has")
        checkpoint.copy_tensors(adapter.tensors, contents.adapter)
        if contents.optimizer is not None:
            checkpoint.copy_tensors(name_moments(adapter.view, state), contents.optimizer)
            state.num_steps = contents.step

    def load_adapter(self, run: str, folder: Path) -> None:
        """A PEFT folder's weights into the run's own adapter, which keeps its rank and layers. The
        optimizer begins anew; gradients are dropped."""
        if self.full is not None:
            raise InvalidInput(
                f"{folder.name} holds an adapter: a full-parameter run loads all weights of a model"
            )
        adapter = self._adapter(run)
        weights = read_weights(folder, adapter, self.base_digest)
        checkpoint.copy_tensors(without_head(adapter.tensors), weights)
        adapter.drop_gradients()
        kind = name_optimizer(self.optimizers[run])
        self.optimizers[run] = STATES[kind].fresh(adapter.values)

    def _load_full(self, run: str, folder: Path, *, optimizer: bool) -> None:
        source = whole.Source(folder, base_digest=self.base_digest, optimizer=optimizer)
        full = self._take_model(run, source.manifest.spec)
        weights, state = full.weights, STATES[source.manifest.optimizer].fresh(full.weights.values)
        moments = name_moments(full.list_targets, state) if optimizer else None
        source.fill(full.files, full.list_targets(weights.values), moments)
        full.training.refresh()
        state.num_steps = source.manifest.step if optimizer else 0
        self.optimizers[run] = state

    def probe(self, run: str) -> Probe:
        """What the trainer makes of fixed tokens: a server of the same weights must agree."""
        tokens = choose_probe_tokens(self.vocab_size, self.context)
        output = self.forward_backward({run: make_probe(tokens)})[run]
        if isinstance(output, InvalidInput):
            raise output
        return Probe(tokens=tokens, logprobs=tuple(float(value) for value in output.logprobs[0]))
