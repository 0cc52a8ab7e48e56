"""Weights laid out for oneDNN: on a CPU, 2 to 32 rows go through them about twice as fast."""

from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from training.engine.adapters import Adapters
from training.engine.lora import LoraLinear, add_low_rank

# Only a hint: measured, a layout made for 16 rows is as good for 2 and for 512.
USUAL_ROWS = 16
FEWEST_ROWS = 4  # one row takes longer than four: oneDNN has a slower path for it


class PackedLinear(LoraLinear):
    """A LoraLinear for decoding only: no gradient passes through it."""

    def __init__(self, layer: LoraLinear, *, is_tied: bool) -> None:
        super().__init__(cast(nn.Linear, layer), layer.route)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), USUAL_ROWS)
        if not is_tied:
            # One element that looks like the whole: shape, type and device are still asked for.
            hollow = layer.weight.new_empty(1).expand(layer.weight.shape)
            self.weight = nn.Parameter(hollow, requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows_NI = inputs.reshape(-1, inputs.shape[-1])
        num_rows = len(rows_NI)
        if num_rows < FEWEST_ROWS:
            rows_NI = nn.functional.pad(rows_NI, (0, 0, 0, FEWEST_ROWS - num_rows))
        out_NO: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            rows_NI, self.packed, self.bias, "none", [], ""
        )[:num_rows]
        add_low_rank(out_NO, rows_NI, self.find_active(self.route.slices))
        return out_NO.view(*inputs.shape[:-1], -1)


def can_pack(model: PreTrainedModel) -> bool:
    is_plain = model.device.type == "cpu" and model.dtype == torch.float32
    return is_plain and torch._C._has_mkldnn


def pack_linears(model: PreTrainedModel, adapters: Adapters) -> None:
    """Replace the model's layers, before any adapter is loaded. Weights are not held twice."""
    embedding = model.get_input_embeddings()
    for name, (part, layer) in adapters.layers.items():
        if not isinstance(layer, LoraLinear):
            continue
        packed = PackedLinear(layer, is_tied=layer.weight is embedding.weight)
        model.set_submodule(name, packed)
        adapters.layers[name] = (part, packed)
        if layer is adapters.head:
            adapters.head = packed
