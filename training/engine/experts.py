"""LoRA on the experts of a mixture, for any number of runs in one pass.

Every expert's gate, up and down projection has an A and a B of its own, with the run's rank and
scale, under the names that the experts have in the base model's files (`experts.3.up_proj.lora_A`).
That is what PEFT trained when experts were modules, what it still loads into the fused parameters
of today, what vLLM takes for its fused kernel unless it is told otherwise, and what the 3-D tensors
of Tinker's downloads hold in one piece. Of the two other forms, PEFT's `target_parameters` has one
A for gate and up together, and vLLM reads it behind a flag only; Tinker shares the factors on the
hidden side among all experts, which neither PEFT nor vLLM can be told. Both are special cases of
this one. The router is not trained, and no loss balances its load: Tinker's losses have none.

A run's buffers hold all its experts, as they hold all its layers. An expert that no token chose
has a gradient of zero, as in PEFT; what is computed is the chosen ones'. Kept for the backward are
a token's input, once for all its experts, and what its experts' gates and ups make of it: the rest
is computed again. The router's weights of the experts are multiplied in before the down projection,
which is linear, because there is less of it than of its outcome.

Shapes: N rows (tokens, flattened), K experts chosen for each, H hidden size.
"""

import torch
from torch import nn

from training.engine.lora import Active, Adapted, Block, Route, name_tensors
from training.engine.places import Plan, Share, Work, answer_rows, plan_places
from training.engine.routes import Routing

# Where the experts of a layer stand in the base model's files, and their projections' names there.
NAMES = {
    "Qwen3MoeExperts": ("mlp.experts", ("gate_proj", "up_proj", "down_proj")),
    "MixtralExperts": ("block_sparse_moe.experts", ("w1", "w3", "w2")),
}
# In Tinker's downloads, where all experts of a layer are one tensor. It offers no Mixtral.
JOINED_NAMES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


class LoraStack(Adapted):
    """One projection of all experts of a layer, as far as adapters are concerned."""

    def __init__(self, route: Route, shape: tuple[int, int, int]) -> None:
        super().__init__(route)
        self.num_experts, self.outputs, self.inputs = shape

    def name_blocks(self, name: str, rank: int) -> tuple[Block, Block]:
        prefix, _, projection = name.rpartition(".")
        names = [name_tensors(f"{prefix}.{e}.{projection}") for e in range(self.num_experts)]
        return (
            Block(names=tuple(a for a, _ in names), shape=(rank, self.inputs), is_stack=True),
            Block(names=tuple(b for _, b in names), shape=(self.outputs, rank), is_stack=True),
        )

    def find_pieces(self, plan: Plan) -> Active:
        return tuple(
            (start, stop, self.pairs[run].parts[expert])
            for expert, run, start, stop in plan.pieces
            if run in self.pairs
        )


class LoraExperts(nn.Module):
    """In the place of transformers' experts: the same weights, every run's adapters beside them."""

    def __init__(self, experts: nn.Module, route: Route) -> None:
        super().__init__()
        self.route = route
        assert isinstance(experts.gate_up_proj, nn.Parameter)
        assert isinstance(experts.down_proj, nn.Parameter)
        self.gate_up_proj, self.down_proj = experts.gate_up_proj, experts.down_proj
        assert isinstance(experts.act_fn, nn.Module)
        self.act_fn = experts.act_fn
        num_experts, hidden, self.width = self.down_proj.shape
        gate, up, down = (
            LoraStack(route, shape)
            for shape in (
                (num_experts, self.width, hidden),
                (num_experts, self.width, hidden),
                (num_experts, hidden, self.width),
            )
        )
        # Not a ModuleList: they have no weights, and the model's names stay as they are.
        self.stacks = (gate, up, down)

    def forward(
        self, hidden_NH: torch.Tensor, ids_NK: torch.Tensor, weights_NK: torch.Tensor
    ) -> torch.Tensor:
        plan = plan_places(ids_NK, self.route.slices, len(self.down_proj))
        gate, up, down = (stack.find_pieces(plan) for stack in self.stacks)
        left, right = slice(0, self.width), slice(self.width, 2 * self.width)
        work = Work(
            plan=plan,
            act=self.act_fn,
            width=self.width,
            halves=(Share(left, gate), Share(right, up)),
            whole=(Share(slice(None), down),),
        )
        return answer_rows(work, hidden_NH, weights_NK, self.gate_up_proj, self.down_proj)


def name_stacks(name: str, experts: nn.Module) -> tuple[str, ...]:
    """The names, as in the base model's files, of the projections of the experts at `name`."""
    place, projections = NAMES[type(experts).__name__]
    prefix = name.removesuffix("mlp.experts") + place
    return tuple(f"{prefix}.{projection}" for projection in projections)


def count_idle(model: nn.Module, routing: Routing | None) -> int:
    """Weights of experts that a token does not meet."""
    if routing is None:
        return 0
    experts = [module for module in model.modules() if isinstance(module, LoraExperts)]
    total = sum(weight.numel() for module in experts for weight in module.parameters())
    return total * (routing.num_experts - routing.num_chosen) // routing.num_experts


def name_joined(name: str) -> tuple[str, str] | None:
    """Of a projection's A and B in a Tinker download. None: it says nothing of such a layer."""
    prefix, _, projection = name.rpartition(".")
    joined = JOINED_NAMES.get(projection)
    return None if joined is None else name_tensors(f"{prefix}.{joined}")
