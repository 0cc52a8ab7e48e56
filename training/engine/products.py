"""Products with frozen weights: through oneDNN where that is the faster one on a CPU.

Measured on an AMD EPYC with AVX-512, float32, 16 to 1500 rows and layers of 576 x 576 up: PyTorch's
own product goes to MKL, which takes about twice as long there. Of the weights no copy is kept.

Shapes: N rows, I inputs and O outputs of a layer.
"""

import torch
from torch import nn

# Elements of a layer: below, a shape that is seen for the first time costs more than is saved.
LEAST_ELEMENTS = 2**16
HAS_ONEDNN: bool = torch._C._has_mkldnn


def multiply(
    rows_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None
) -> torch.Tensor:
    """x W' + b, not to be differentiated."""
    if is_suited(rows_NI, weight_OI):
        return _multiply_onednn(rows_NI, weight_OI, bias_O)
    return nn.functional.linear(rows_NI, weight_OI, bias_O)


def pull_back(grad_NO: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    """g W: the gradient by the rows."""
    if is_suited(grad_NO, weight_OI):
        return _multiply_onednn(grad_NO, weight_OI.T, None)
    return grad_NO @ weight_OI


def is_suited(rows: torch.Tensor, weight: torch.Tensor) -> bool:
    is_plain = rows.dtype == weight.dtype == torch.float32 and weight.device.type == "cpu"
    return HAS_ONEDNN and is_plain and weight.numel() >= LEAST_ELEMENTS and len(rows) > 0


def _multiply_onednn(
    rows_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None
) -> torch.Tensor:
    out_NO: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
        rows_NI, weight_OI, bias_O, "none", [], ""
    )
    return out_NO
