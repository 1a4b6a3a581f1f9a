"""What the weights of a linear layer or convolution connect, and what they make of constants."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.compaction.operations import is_padded
from bench.compaction.steps import Graph, Step


def kernels(module: nn.Module) -> Tensor:
    """Of a linear layer or convolution: the weights between each output and each input, (O, I / groups, kernel)."""
    assert isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    weight = module.weight.detach()
    if isinstance(module, nn.Linear):
        return weight[:, :, None]
    return (weight.transpose(0, 1) if isinstance(module, nn.ConvTranspose2d) else weight).flatten(2)


def spread(module: nn.Module, matrix: Tensor) -> Tensor:
    """A matrix (O, I / groups) over all inputs: (O, I), with zeros between the groups; (C,) of a depthwise
    convolution."""
    groups = getattr(module, "groups", 1)
    if groups == 1:
        return matrix
    if groups == module.in_channels == module.out_channels:
        return matrix[:, 0]
    return torch.block_diag(*matrix.chunk(groups))


def reads(graph: Graph, step: Step) -> Tensor:
    """Which output of a linear layer or convolution reads which input, (O, I) bool; (C,) of a depthwise one. As it was
    when it was first asked."""
    if step not in graph.reads:
        assert step.module is not None
        weights = kernels(step.module)
        if weights.shape[2] == 1:
            used = weights[:, :, 0] != 0
        else:  # a product with ones, because a reduction over so short an axis takes several times as long
            used = weights.abs() @ weights.new_ones(weights.shape[2]) != 0
        # As bytes, for there is no block_diag of bool.
        graph.reads[step] = spread(step.module, used.view(torch.uint8)).view(torch.bool)
    return graph.reads[step]


def rows_of(used: Tensor, columns: Tensor) -> Tensor:
    """(O,) bool: the rows of a bool matrix (O, I) that have a one in the columns of the mask. On bytes, which torch
    takes many at a time: the same with bools takes several times as long."""
    return (used.view(torch.uint8) & columns.view(torch.uint8)).amax(1).bool()


def columns_of(used: Tensor, rows: Tensor) -> Tensor:
    """(I,) bool: the columns that have a one in the rows of the mask."""
    return (used.view(torch.uint8) & rows.view(torch.uint8)[:, None]).amax(0).bool()


def answer(step: Step, constants: Tensor) -> Tensor:
    """What a linear layer or convolution makes of inputs that are the same at every pixel, (I,), its bias aside: (O,)
    float64; (C,) of a depthwise one."""
    assert step.module is not None
    if not bool((constants != 0).any()):
        return torch.zeros(len(step.units), dtype=torch.float64)
    total = spread(step.module, kernels(step.module).double().sum(2))
    return total * constants if step.operation.kind == "depthwise" else total @ constants


def folds(module: nn.Module) -> bool:
    """Whether a constant input acts as a bias at every pixel."""
    if isinstance(module, nn.ConvTranspose2d):
        return False  # how often a pixel is written depends on where it is
    return not (isinstance(module, nn.Conv2d) and is_padded(module))
