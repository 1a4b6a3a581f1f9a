"""Multiply-accumulates of one image, counted twice by counters that know nothing of each other.

The convention: convolutions and linear layers only. A normalisation is folded into its neighbour before
deployment, so it counts nothing; nor do biases, activations, pooling and the products of queries, keys and values in
attention. FLOPs, where a table shows them, are 2 × MACs.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.errors import CellFailed

_FVCORE_OPERATORS = ("conv", "linear", "addmm")
_TORCH_OPERATORS = (torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm)


def count_macs(network: nn.Module, example: Tensor) -> int:
    """MACs of `network` in evaluation mode on `example`, (1, C, H, W). The network is not changed.

    Raises CellFailed("unequal") if torch's counter does not give exactly twice fvcore's number, ValueError if
    `example` is not one image.
    """
    if len(example) != 1:
        raise ValueError(f"MACs are counted for one image, the example has {len(example)}")
    # Both counters hang hooks on the modules, and leave them there if the forward pass raises: hence a copy.
    network = copy.deepcopy(network).eval()
    by_fvcore = _count_by_fvcore(network, example)
    flops_by_torch = _count_flops_by_torch(network, example)
    if flops_by_torch != 2 * by_fvcore:
        raise CellFailed(
            "unequal", f"MAC counters disagree: fvcore counts {by_fvcore}, torch {flops_by_torch} / 2"
        )
    return by_fvcore


def _count_by_fvcore(network: nn.Module, example: Tensor) -> int:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # fvcore traces with torch.jit, which is deprecated but there
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(network, (example,))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        counts = analysis.by_operator()  # fvcore's "flop" is one multiply-accumulate
    return int(sum(counts[operator] for operator in _FVCORE_OPERATORS))


def _count_flops_by_torch(network: nn.Module, example: Tensor) -> int:
    # no_grad, not inference_mode: only the former takes linear apart into the operators that are counted
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(example)
    counts = counter.get_flop_counts().get("Global", {})
    return sum(counts.get(operator, 0) for operator in _TORCH_OPERATORS)
