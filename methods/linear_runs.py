"""Layers between two ReLUs, and runs of linear maps that one map can replace.

What `layer-sparsity` needs to know of a network: which layers have a nonnegative input and a ReLU behind them (their
ReLU is the identity once their weights are nonnegative), and which neighbours then multiply to one map exactly and at
a profit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

_POSITIVE: set[Any] = {functional.relu, torch.relu, functional.relu6, "relu", "relu_"}
_KEEP_SIGN: set[Any] = {torch.flatten, "flatten", "view", "reshape", "contiguous"}
_KEEP_SIGN_MODULES = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.Flatten,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Inner:
    """A linear layer or convolution whose input is nonnegative and whose output enters a ReLU.

    Paths of modules. norm: between layer and ReLU. reader: the layer that alone reads the ReLU's output, with nothing
    in between; None where something is. source: the activation that the nonnegative input comes from, where it is a
    module."""

    layer: str
    norm: str | None
    activation: str
    reader: str | None
    source: str | None = None


def find_inner(network: nn.Module) -> tuple[Inner, ...]:
    """The inner layers in the order of execution; only those whose ReLU is a module called once.

    Raises whatever torch.fx raises for a network that it cannot trace.
    """
    modules = dict(network.named_modules())
    graph = fx.Tracer().trace(network)
    calls = Counter(id(modules[str(n.target)]) for n in graph.nodes if n.op == "call_module")

    def module_of(node: fx.Node) -> nn.Module | None:
        """The module that a node calls, if nobody else does."""
        module = modules[str(node.target)] if node.op == "call_module" else None
        return module if module is not None and calls[id(module)] == 1 else None

    def source_of(node: fx.Node) -> fx.Node | None:
        """The ReLU that a tensor comes from through what keeps signs; None where it may have negative entries."""
        module = modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, nn.ReLU | nn.ReLU6) or node.target in _POSITIVE:
            return node
        passes = isinstance(module, _KEEP_SIGN_MODULES) or (module is None and node.target in _KEEP_SIGN)
        return source_of(node.all_input_nodes[0]) if passes else None

    def only_user(node: fx.Node) -> fx.Node | None:
        user = next(iter(node.users)) if len(node.users) == 1 else None
        while user is not None and isinstance(module_of(user), nn.Identity):
            user = next(iter(user.users)) if len(user.users) == 1 else None
        return user

    found = []
    for node in graph.nodes:
        if not isinstance(module_of(node), nn.Linear | nn.Conv2d):
            continue
        user, norm = only_user(node), None
        if user is not None and _has_statistics(module_of(user)):
            norm, user = str(user.target), only_user(user)
        if user is None or type(module_of(user)) is not nn.ReLU:
            continue
        if source := source_of(node.all_input_nodes[0]):
            reader = only_user(user)
            is_layer = reader is not None and isinstance(module_of(reader), nn.Linear | nn.Conv2d)
            name = str(reader.target) if reader is not None and is_layer else None
            before = str(source.target) if source.op == "call_module" else None
            found.append(Inner(str(node.target), norm, str(user.target), name, before))
    return tuple(found)


def _has_statistics(module: nn.Module | None) -> bool:
    return isinstance(module, _NORMS) and module.affine and module.track_running_stats


@dataclass(frozen=True)
class _Map:
    """What decides whether two maps have a product. taps: places of the kernel. pointwise: 1×1, without padding of
    any kind (linear layers are). plain_stride: of 1. padded: with zeros."""

    outputs: int
    inputs: int
    taps: int
    pointwise: bool
    plain_stride: bool
    padded: bool
    biased: bool
    convolution: bool

    @property
    def weights(self) -> int:
        return self.outputs * self.inputs * self.taps


def _map_of(layer: nn.Module) -> _Map | None:
    biased = getattr(layer, "bias", None) is not None
    if isinstance(layer, nn.Linear):
        return _Map(layer.out_features, layer.in_features, 1, True, True, False, biased, False)
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1:
        return None
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    if isinstance(layer.padding, str):
        pads = layer.padding == "same" and taps > 1
    else:
        pads = any(side > 0 for side in layer.padding)
    padded = pads and layer.padding_mode == "zeros"
    return _Map(
        layer.out_channels,
        layer.in_channels,
        taps,
        taps == 1 and not pads,
        layer.stride == (1, 1),
        padded,
        biased,
        True,
    )


def _product_of(one: _Map, two: _Map) -> _Map | None:
    """`two` after `one`, where it is a single map exactly: one of them is pointwise, and no zero padding stands
    between a bias and its reader."""
    if one.convolution != two.convolution:
        return None
    if two.pointwise:
        shape = one
    elif one.pointwise and one.plain_stride and not (one.biased and two.padded):
        shape = two
    else:
        return None
    return replace(
        shape,
        outputs=two.outputs,
        inputs=one.inputs,
        plain_stride=one.plain_stride and two.plain_stride,
        biased=one.biased or two.biased,
    )


def find_runs(network: nn.Module, inactive: Sequence[Inner]) -> list[list[str]]:
    """Layers to multiply together, in the order of execution: every layer of a run but the last is inactive.

    Two maps are merged if their product is exact and has fewer weights than both (§3d-6).
    """
    runs: list[list[str]] = []
    product: _Map | None = None
    for inner in inactive:
        joins = bool(runs) and runs[-1][-1] == inner.layer
        first = product if joins else _map_of(network.get_submodule(inner.layer))
        second = None if inner.reader is None else _map_of(network.get_submodule(inner.reader))
        if first is None or second is None or inner.norm is not None:
            continue
        merged = _product_of(first, second)
        if merged is None or merged.weights >= first.weights + second.weights:
            continue
        assert inner.reader is not None
        product = merged
        if joins:
            runs[-1].append(inner.reader)
        else:
            runs.append([inner.layer, inner.reader])
    return runs


@torch.no_grad()
def multiply(layers: Sequence[nn.Module]) -> tuple[Tensor, Tensor]:
    """The one map of a run: float64 weight (outputs, inputs, h, w) and bias (outputs,). A linear layer counts as a
    1×1 convolution. For two layers W = W₂W₁ and b = W₂b₁ + b₂."""
    weight, bias = _parts(layers[0])
    for layer in layers[1:]:
        second, shift = _parts(layer)
        if second.shape[2:] == (1, 1):
            weight = torch.einsum("om,mikl->oikl", second[:, :, 0, 0], weight)
        else:
            weight = torch.einsum("omkl,mi->oikl", second, weight[:, :, 0, 0])
        bias = second.sum((2, 3)) @ bias + shift
    return weight, bias


def _parts(layer: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    weight = layer.weight.detach().double()
    weight = weight if weight.dim() == 4 else weight[:, :, None, None]
    return weight, weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()


def find_holder(network: nn.Module, run: Sequence[str]) -> int | None:
    """The position in a run that can hold the product while the others are embeddings I, so that the run computes the
    product whatever it is; None where the run is too narrow for that somewhere (or the holder has no bias to take what
    other layers have)."""
    layers = [_map_of(network.get_submodule(name)) for name in run]
    assert all(layer is not None for layer in layers)
    maps = [layer for layer in layers if layer is not None]
    widths = [maps[0].inputs, *(each.outputs for each in maps)]
    for at in reversed(range(len(run))):
        others = [each for position, each in enumerate(maps) if position != at]
        fits = all(width >= widths[0] for width in widths[1 : at + 1])
        fits &= all(width >= widths[-1] for width in widths[at + 1 : -1])
        takes_bias = maps[at].biased or not any(each.biased for each in maps)
        if fits and takes_bias and all(each.pointwise for each in others):
            return at
    return None


@torch.no_grad()
def hold(layers: Mapping[str, nn.Module], holder: str, weight: Tensor, bias: Tensor) -> None:
    """Write a product (as of `multiply`) into the run: the holder takes it in its first rows and columns, zeros
    around it, all other layers become embeddings I without bias."""
    for name, layer in layers.items():
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        if layer.bias is not None:
            layer.bias.zero_()
        if name == holder:
            layer.weight.zero_()
            block = layer.weight[: weight.shape[0], : weight.shape[1]]
            block.copy_(weight if block.dim() == 4 else weight[:, :, 0, 0])
            if layer.bias is not None:
                layer.bias[: len(bias)] = bias.to(layer.bias)
        elif isinstance(layer, nn.Linear):
            nn.init.eye_(layer.weight)
        else:
            nn.init.dirac_(layer.weight)
